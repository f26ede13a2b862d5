"""Channels to services: how they connect, retry, and carry identity, deadline and trace along."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from turnwire.runtime.traces import Tracer

Metadata = tuple[tuple[str, str], ...]
_TRACEPARENT = "traceparent"

_READS = {
    "turnwire.agent.v1.AgentService": (
        "GetAgent",
        "ListAgents",
        "ListAgentVersions",
        "GetSession",
        "ListSessions",
        "GetTurn",
        "ListTurns",
        "GetStep",
        "ListSteps",
    ),
    "turnwire.access.v1.AccessService": ("ListApiKeys",),
    "turnwire.inference.v1.ModelService": ("GetModel", "ListModels"),
    "turnwire.inference.v1.InferenceService": ("CountTokens", "Embed"),
    "turnwire.safety.v1.ShieldService": ("GetShield", "ListShields"),
    # A judgement keeps nothing: what it says of a turn is kept by the agent, once.
    "turnwire.safety.v1.SafetyService": ("RunShields",),
    "turnwire.memory.v1.MemoryBankService": ("GetMemoryBank", "ListMemoryBanks"),
    "turnwire.memory.v1.MemoryService": ("Query", "GetDocument", "ListDocuments"),
    "turnwire.tool_executor.v1.ToolService": ("GetTool", "ListTools"),
    "turnwire.tool_executor.v1.ToolExecutorService": ("GetExecution",),
    "turnwire.tool_executor.v1.ArtifactService": ("GetArtifact", "ListArtifacts"),
    "turnwire.common.v1.InspectService": ("GetServerInfo", "ListMethods", "ListProviders"),
}
"""What may be repeated when it failed without an answer. Streams never: a cut turn is resumed."""

_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [
                    {"service": service, "method": method} for service, methods in _READS.items() for method in methods
                ],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.5s",
                    "backoffMultiplier": 2,
                    # A server that begins to stop answers CANCELLED to calls that it has not begun.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
    }
)

# Receiving more than a request may have: lists and turns can be large.
MAX_RECEIVED_BYTES = 64 * 1024 * 1024


def channel_options(*, keepalive_ms: int = 3_000, small_windows: bool = False) -> list[tuple[str, Any]]:
    """Returns the options of a channel.

    A silent partition is noticed in under five seconds; the server's shortest ping interval lies below ours. With
    `small_windows` a stopped reader holds up its writer after some messages, not after minutes of them.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", max(1_500, keepalive_ms // 3)),
        # A probe of the bandwidth that is out holds the keepalive's ping back, and has a minute of its own.
        ("grpc.http2.ping_timeout_ms", max(1_500, keepalive_ms // 3)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # The time that connecting may take: TLS, a distant region and a busy machine need more than a moment.
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
        ("grpc.max_send_message_length", MAX_RECEIVED_BYTES),
        # Without it two channels to one address share a connection, and with it the windows.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if small_windows:
        options += [("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0)]
    return options


@asynccontextmanager
async def upstream(call: Any) -> AsyncGenerator[Any]:
    """Gives a call that is cancelled when the context is left, however it is left.

    An abandoned call is never collected by gRPC: it would stay open until its channel closes.
    """
    try:
        yield call
    finally:
        call.cancel()


class PreparedChannel:
    """A channel whose calls carry metadata and a deadline that are made for each of them."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        prepare: Callable[[float | None, Metadata | None], tuple[float | None, Metadata]],
        tracer: Tracer | None = None,
    ) -> None:
        """`prepare` turns what a call was given into what it is sent with; `tracer` gives each call a span."""
        self._channel = channel
        self._prepare = prepare
        self._tracer = tracer

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `grpc.aio.Channel.unary_unary`."""
        return self._wrapped(method, self._channel.unary_unary(method, *args, **kwargs))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `grpc.aio.Channel.unary_stream`."""
        return self._wrapped(method, self._channel.unary_stream(method, *args, **kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `grpc.aio.Channel.stream_unary`."""
        return self._wrapped(method, self._channel.stream_unary(method, *args, **kwargs))

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `grpc.aio.Channel.stream_stream`."""
        return self._wrapped(method, self._channel.stream_stream(method, *args, **kwargs))

    async def close(self, grace: float | None = None) -> None:
        """Closes the channel and cancels its calls."""
        await self._channel.close(grace)

    def _wrapped(self, method: str, multicallable: Any) -> Any:
        prepare = self._prepare
        tracer = self._tracer

        def call(
            *args: Any, timeout: float | None = None, metadata: Sequence[tuple[str, str]] | None = None, **kwargs: Any
        ) -> Any:
            seconds, sent = prepare(timeout, tuple(metadata) if metadata is not None else None)
            return multicallable(*args, timeout=seconds, metadata=sent, **kwargs)

        def traced(
            *args: Any, timeout: float | None = None, metadata: Sequence[tuple[str, str]] | None = None, **kwargs: Any
        ) -> Any:
            assert tracer is not None
            seconds, sent = prepare(timeout, tuple(metadata) if metadata is not None else None)
            span = tracer.client(name, next((value for key, value in sent if key == _TRACEPARENT), ""))
            others = [(key, value) for key, value in sent if key != _TRACEPARENT]
            try:
                begun = multicallable(
                    *args, timeout=seconds, metadata=(*others, (_TRACEPARENT, span.traceparent)), **kwargs
                )
            except BaseException:
                span.end("INTERNAL")
                raise
            tracer.end_with(span, begun)
            return begun

        name = method.removeprefix("/")
        return call if tracer is None else traced
