"""Prometheus metrics of a process."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.process_collector import ProcessCollector

_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300)


class Metrics:
    """Counts the calls of a service; names are those of OpenTelemetry's RPC conventions, as Prometheus writes them."""

    def __init__(self, service: str) -> None:
        """Counts nothing yet."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.calls = Counter(
            "rpc_server_calls", "Finished calls.", ["rpc_method", "rpc_grpc_status_code"], registry=self.registry
        )
        self.duration = Histogram(
            "rpc_server_duration_seconds", "Time of calls.", ["rpc_method"], buckets=_BUCKETS, registry=self.registry
        )
        self.open = Gauge("rpc_server_open_calls", "Calls that are open.", ["rpc_method"], registry=self.registry)
        self.service = service
        self._server: Any = None

    def serve(self, host: str, port: int) -> None:
        """Serves the metrics over HTTP until `close`."""
        self._server = start_http_server(port, addr=host, registry=self.registry)

    def close(self) -> None:
        """Stops serving."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
            self._server = None
