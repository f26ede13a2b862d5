"""Prometheus metrics of the gateway; names are those of OpenTelemetry's HTTP conventions."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, start_http_server
from prometheus_client.process_collector import ProcessCollector

_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300)


class HttpMetrics:
    """Counts requests."""

    def __init__(self) -> None:
        """Counts nothing yet."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.duration = Histogram(
            "http_server_request_duration_seconds",
            "Time of requests, to the end of the answer.",
            ["http_route", "http_response_status_code"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.open = Gauge(
            "http_server_active_requests", "Requests that are open.", ["http_route"], registry=self.registry
        )
        self._server: Any = None

    def begun(self, route: str) -> None:
        """Counts a request that is open."""
        self.open.labels(route).inc()

    def ended(self, route: str, status: int, seconds: float) -> None:
        """Counts a request that is over."""
        self.open.labels(route).dec()
        self.duration.labels(route, str(status)).observe(seconds)

    def serve(self, host: str, port: int) -> None:
        """Serves the metrics over HTTP until `close`."""
        self._server = start_http_server(port, addr=host, registry=self.registry)

    def close(self) -> None:
        """Stops serving; waits for its thread."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
            self._server = None
