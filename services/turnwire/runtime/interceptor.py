"""What happens around every call of a service: who calls, may they, how long, and how it ended."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from turnwire.errors import (
    Cancelled,
    Internal,
    MalformedMessage,
    MessageTooLarge,
    Overloaded,
    TurnwireError,
    Unimplemented,
)
from turnwire.ids import new_id
from turnwire.runtime.failpoints import Failpoint, of_method
from turnwire.runtime.identity import begin_call
from turnwire.runtime.trace_context import next_traceparent, trace_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from turnwire.runtime.authentication import Authenticator
    from turnwire.runtime.metrics import Metrics
    from turnwire.runtime.traces import CallSpan, Tracer

_log = structlog.get_logger("turnwire.rpc")
_QUIET = ("grpc.health.v1.Health/",)


class _Refused:
    """A request that is no message: it is refused in the handler, where a status can be sent."""

    __slots__ = ("error",)

    def __init__(self, error: TurnwireError) -> None:
        self.error = error


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handler of every method, known or not."""

    def __init__(
        self,
        service: str,
        authenticator: Authenticator,
        metrics: Metrics | None,
        *,
        message_bytes: int,
        concurrent_calls: int,
        tracer: Tracer | None = None,
    ) -> None:
        """`message_bytes` bounds a request, `concurrent_calls` what is handled at once; `tracer` gives calls spans."""
        self._tracer = tracer
        self._service = service
        self._authenticator = authenticator
        self._metrics = metrics
        self._message_bytes = message_bytes
        self._concurrent_calls = concurrent_calls
        self._open = 0
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Returns the wrapped handler of a method; they are kept, so a call pays for no wrapping."""
        method: str = handler_call_details.method.removeprefix("/")
        handler = self._wrapped.get(method)
        if handler is None:
            inner = await continuation(handler_call_details)
            if inner is None:
                return self._unknown(method)
            handler = self._wrapped[method] = self._wrap(method, inner)
        return handler

    def _wrap(self, method: str, inner: Any) -> Any:
        deserialize = self._deserializer(method, inner.request_deserializer)
        if inner.request_streaming:
            inner_stream = inner.stream_stream if inner.response_streaming else inner.stream_unary
            function = inner_stream
        else:
            function = inner.unary_stream if inner.response_streaming else inner.unary_unary
        if inner.response_streaming:
            streaming = (
                grpc.stream_stream_rpc_method_handler
                if inner.request_streaming
                else (grpc.unary_stream_rpc_method_handler)
            )
            behaviour = self._stream_behaviour(method, function, streams_in=inner.request_streaming)
            return streaming(behaviour, deserialize, inner.response_serializer)
        plain = grpc.stream_unary_rpc_method_handler if inner.request_streaming else grpc.unary_unary_rpc_method_handler
        behaviour = self._unary_behaviour(method, function, streams_in=inner.request_streaming)
        return plain(behaviour, deserialize, inner.response_serializer)

    def _unknown(self, method: str) -> Any:
        async def answer(request: object, context: Any) -> object:
            error = Unimplemented(f"the method {method}", "Look at its name, and at the version of the server.")
            await _abort(context, error)
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)

    def _deserializer(self, method: str, inner: Callable[[bytes], object] | None) -> Callable[[bytes], object]:
        limit = self._message_bytes

        def deserialize(data: bytes) -> object:
            if len(data) > limit:
                error = MessageTooLarge(size_bytes=len(data), limit_bytes=limit)
                error.metadata["method"] = method
                return _Refused(error)
            if inner is None:
                return data
            try:
                return inner(data)
            except DecodeError:
                error = MalformedMessage(method)
                error.metadata["method"] = method
                return _Refused(error)

        return deserialize

    def _unary_behaviour(self, method: str, function: Any, *, streams_in: bool) -> Any:
        points = of_method(method)

        async def behaviour(request: Any, context: Any) -> object:
            call = _Call(self, method, context)
            error: TurnwireError | None = None
            response: object = None
            try:
                call.begin()
                taken = _checked_stream(request) if streams_in else _checked(request)
                if points is not None:
                    await points.received.reached()
                response = await function(taken, context)
                if points is not None:
                    await points.ended.reached()
            except BaseException as raised:
                error = call.typed(raised)
            finally:
                call.end(error)
            if error is not None:
                await _abort(context, error)
            return response

        return behaviour

    def _stream_behaviour(self, method: str, function: Any, *, streams_in: bool) -> Any:
        points = of_method(method)

        async def behaviour(request: Any, context: Any) -> AsyncIterator[object]:
            call = _Call(self, method, context)
            error: TurnwireError | None = None
            try:
                call.begin()
                taken = _checked_stream(request) if streams_in else _checked(request)
                if points is not None:
                    await points.received.reached()
                result = function(taken, context)
                if hasattr(result, "__aiter__"):
                    sent = False
                    async with aclosing(result) as responses:
                        async for response in responses:
                            if points is not None and Failpoint.armed:
                                await points.response(first=not sent)
                                sent = True
                            yield response
                else:
                    # Not built yet: a coroutine that only raises.
                    await result
                if points is not None:
                    await points.ended.reached()
            except GeneratorExit:
                call.cut()
                raise
            except BaseException as raised:
                error = call.typed(raised)
            finally:
                call.end(error)
            if error is not None:
                await _abort(context, error)

        return behaviour


class _Call:
    """One call: its identity, its time, its end."""

    __slots__ = ("_begun", "_context", "_counted", "_cut", "_interceptor", "_method", "_request_id", "_span")

    def __init__(self, interceptor: CallInterceptor, method: str, context: Any) -> None:
        self._interceptor = interceptor
        self._method = method
        self._context = context
        self._begun = time.monotonic()
        self._counted = False
        self._cut = False
        self._request_id = ""
        self._span: CallSpan | None = None

    def begin(self) -> None:
        interceptor, context = self._interceptor, self._context
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        self._request_id = metadata.get("turnwire-request-id", "")[:100] or new_id("req")
        trace = self._trace(metadata.get("traceparent", ""))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(
            service=interceptor._service, request_id=self._request_id, trace_id=trace_id(trace)
        )
        context.set_trailing_metadata((("turnwire-request-id", self._request_id),))
        if interceptor._open >= interceptor._concurrent_calls:
            raise Overloaded(interceptor._service, limit=str(interceptor._concurrent_calls))
        interceptor._open += 1
        self._counted = True
        if interceptor._metrics is not None:
            interceptor._metrics.open.labels(self._method).inc()
        caller = interceptor._authenticator.caller(self._method, metadata)
        begin_call(caller, seconds=context.time_remaining(), call_id=self._request_id, trace=trace)

    def _trace(self, incoming: str) -> str:
        tracer = self._interceptor._tracer
        if tracer is None or self._method.startswith(_QUIET):
            return next_traceparent(incoming)
        self._span = tracer.server(self._method, incoming)
        self._span.set("turnwire.request_id", self._request_id)
        return self._span.traceparent

    def cut(self) -> None:
        """Notes that the call is over before its handler is."""
        self._cut = True

    def typed(self, raised: BaseException) -> TurnwireError:
        """Returns the error that the caller gets. A cancellation from outside is let through."""
        if isinstance(raised, TurnwireError):
            return raised
        if isinstance(raised, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self.cut()
                raise raised
            # Something inside was cancelled. Without a status the caller would wait for its deadline.
            return Cancelled(f"A part of {self._method} was cancelled: retry.")
        if not isinstance(raised, Exception):
            raise raised
        _log.exception("rpc_defect", method=self._method)
        return Internal(service=self._interceptor._service, request_id=self._request_id)

    def end(self, error: TurnwireError | None) -> None:
        interceptor = self._interceptor
        if self._counted:
            interceptor._open -= 1
        seconds = time.monotonic() - self._begun
        code = error.code.name if error is not None else self._code_without_error()
        reason = error.reason_name if error is not None else None
        if self._span is not None:
            self._span.end(code, reason)
        if interceptor._metrics is not None:
            if self._counted:
                interceptor._metrics.open.labels(self._method).dec()
            interceptor._metrics.calls.labels(self._method, code).inc()
            interceptor._metrics.duration.labels(self._method).observe(seconds)
        if not self._method.startswith(_QUIET):
            _log.info(
                "rpc_finished",
                method=self._method,
                code=code,
                milliseconds=round(seconds * 1000, 1),
                reason=reason,
            )

    def _code_without_error(self) -> str:
        """Returns how a call ended that raised nothing: answered, left by its caller, or out of time."""
        if not self._cut:
            return "OK"
        left = self._context.time_remaining()
        return "DEADLINE_EXCEEDED" if left is not None and left <= 0 else "CANCELLED"


def _checked(request: Any) -> Any:
    if isinstance(request, _Refused):
        raise request.error
    return request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


async def _abort(context: Any, error: TurnwireError) -> None:
    """Sends the status of an error with its details."""
    abort: Callable[[Any], Awaitable[None]] = context.abort_with_status
    await abort(rpc_status.to_status(error.to_status()))
