"""Spans of calls, sent to an OpenTelemetry collector by OTLP. Imported only where `telemetry.otlp_endpoint` is set.

A span is put into a bounded queue when it ends; a thread sends what is there. Without a collector the queue loses its
oldest spans: no call waits, and none fails.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from turnwire import __version__
from turnwire.runtime.trace_context import next_traceparent, parsed_traceparent

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

_EXPORT_SECONDS = 5.0
_FLUSH_SECONDS = 2.0
"""At the end of a process the last spans have this long to get out."""
_DELAY_MILLISECONDS = 1_000
_QUEUE = 8_192

_SERVER_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"},
)
"""What OpenTelemetry counts as an error of the server; the others are the caller's."""


class Traces:
    """Sends the spans of a process; each of its services has a tracer."""

    def __init__(self, endpoint: str, instance_id: str) -> None:
        """Sends to `endpoint`, as `http://collector:4317`; connects when there is something to send."""
        self._instance_id = instance_id
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS)
        self._processor = BatchSpanProcessor(
            self._exporter, max_queue_size=_QUEUE, schedule_delay_millis=_DELAY_MILLISECONDS
        )

    def tracer(self, service: str) -> Tracer:
        """Returns the tracer of a service."""
        resource = Resource.create(
            {
                "service.namespace": "turnwire",
                "service.name": f"turnwire-{service.replace('_', '-')}",
                "service.version": __version__,
                "service.instance.id": self._instance_id,
            }
        )
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        return Tracer(provider.get_tracer("turnwire", __version__))

    async def close(self) -> None:
        """Sends what is left, for a short while."""
        flushing = asyncio.create_task(asyncio.to_thread(self._processor.force_flush))
        await asyncio.wait({flushing}, timeout=_FLUSH_SECONDS)
        # Wakes a flush that waits for a collector: what it has left is given up.
        await asyncio.to_thread(self._exporter.shutdown)
        await asyncio.to_thread(self._processor.shutdown)
        await flushing


class Tracer:
    """Begins the spans of one service."""

    def __init__(self, tracer: Any) -> None:
        """`tracer` is one of the SDK."""
        self._tracer = tracer
        self._ending: set[asyncio.Task[None]] = set()

    def server(self, method: str, incoming: str) -> CallSpan:
        """Begins the span of a call that came in, below the trace context `incoming`."""
        return self._begun(method, incoming, SpanKind.SERVER)

    def client(self, method: str, parent: str) -> CallSpan:
        """Begins the span of a call that goes out, below the trace context `parent`."""
        return self._begun(method, parent, SpanKind.CLIENT)

    def end_with(self, span: CallSpan, call: Any) -> None:
        """Ends a span when its outgoing call does, however that ends."""

        async def end() -> None:
            span.end((await call.code()).name)

        def ended(_: object) -> None:
            task = asyncio.ensure_future(end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

        call.add_done_callback(ended)

    def _begun(self, method: str, parent: str, kind: SpanKind) -> CallSpan:
        service, _, name = method.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        span = self._tracer.start_span(method, context=_context(parent), kind=kind, attributes=attributes)
        return CallSpan(span, parent, kind)


class CallSpan:
    """The span of one call."""

    __slots__ = ("_kind", "_span", "traceparent")

    def __init__(self, span: Span, parent: str, kind: SpanKind) -> None:
        """`traceparent` is what calls within the span are sent with."""
        self._span = span
        self._kind = kind
        context = span.get_span_context()
        self.traceparent = (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
            if context.is_valid
            # The SDK is switched off by its own environment variable; calls still have ids.
            else next_traceparent(parent)
        )

    def set(self, key: str, value: str) -> None:
        """Sets an attribute."""
        self._span.set_attribute(key, value)

    def end(self, code: str, reason: str | None = None) -> None:
        """Ends the span with the status of its call. No message goes along: it may hold what a user wrote."""
        number, _ = grpc.StatusCode[code].value
        self._span.set_attribute("rpc.grpc.status_code", number)
        if reason is not None:
            self._span.set_attribute("error.type", reason)
        if code in _SERVER_FAULTS or (self._kind is SpanKind.CLIENT and code != "OK"):
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _context(traceparent: str) -> Context | None:
    parsed = parsed_traceparent(traceparent)
    if parsed is None:
        return set_span_in_context(NonRecordingSpan(SpanContext(0, 0, is_remote=True)))
    trace_id, span_id, flags = parsed
    parent = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(parent))
