"""Spans of calls, as a collector gets them."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.mesh.asking import session_of, until_up, weather_tool
from tests.runtime.serving import ROOT, Answering, failure, hosted, inference, stub_of
from turnwire.agent.v1 import agent_service_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import message_pb2
from turnwire.errors import NotFound
from turnwire.inference.v1 import inference_service_pb2 as messages
from turnwire.runtime.extras import ExtraMissing, imported
from turnwire.runtime.trace_context import next_traceparent, parsed_traceparent
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
RUN = "turnwire.agent.v1.AgentService/RunTurn"
CHAT = "turnwire.inference.v1.InferenceService/ChatCompletion"
COUNT = "turnwire.inference.v1.InferenceService/CountTokens"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans it is sent, each with the name of the service that sent it."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, trace_pb2.Span]] = []
        self.hangs = False
        self._more = asyncio.Condition()

    async def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        if self.hangs:
            await asyncio.Event().wait()
        for each in request.resource_spans:
            attributes = {entry.key: entry.value.string_value for entry in each.resource.attributes}
            for scope in each.scope_spans:
                self.spans += [(attributes["service.name"], span) for span in scope.spans]
        async with self._more:
            self._more.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def span(self, service: str, name: str, kind: str, *, trace: str | None = None) -> trace_pb2.Span:
        """Waits for a span."""

        def found() -> trace_pb2.Span | None:
            for sender, span in self.spans:
                known = trace is None or trace == span.trace_id.hex()
                if known and (service, name, kind) == (sender, span.name, _kind(span)):
                    return span
            return None

        async with asyncio.timeout(20), self._more:
            await self._more.wait_for(lambda: found() is not None)
        span = found()
        assert span is not None
        return span


def _kind(span: trace_pb2.Span) -> str:
    return trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_")


def _attributes(span: trace_pb2.Span) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value") or "") for entry in span.attributes}


@asynccontextmanager
async def collecting() -> AsyncGenerator[tuple[Collector, str]]:
    server = grpc.aio.server()
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.mark.mesh
async def test_a_turn_is_one_trace_from_its_caller_to_the_model():
    async with (
        collecting() as (collector, endpoint),
        running_mesh(telemetry={"otlp_endpoint": endpoint}) as mesh,
        mesh.client() as client,
    ):
        session = await session_of(client)
        request = agent_service_pb2.RunTurnRequest(session_id=session, messages=[user_message("hello")])
        metadata = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("turnwire-request-id", "my-request"))
        events = [event async for event in client.agent_stub.RunTurn(request, timeout=30, metadata=metadata)]

        served = await collector.span("turnwire-agent", RUN, "SERVER", trace=TRACE)
        called = await collector.span("turnwire-agent", CHAT, "CLIENT", trace=TRACE)
        answered = await collector.span("turnwire-inference", CHAT, "SERVER", trace=TRACE)

    assert SPAN == served.parent_span_id.hex()
    assert served.span_id == called.parent_span_id
    assert called.span_id == answered.parent_span_id
    assert {
        "rpc.system": "grpc",
        "rpc.service": "turnwire.agent.v1.AgentService",
        "rpc.method": "RunTurn",
        "rpc.grpc.status_code": 0,
        "turnwire.request_id": "my-request",
    } == _attributes(served)
    assert 0 == _attributes(called)["rpc.grpc.status_code"]
    assert served.start_time_unix_nano <= called.start_time_unix_nano <= answered.start_time_unix_nano
    assert answered.end_time_unix_nano <= served.end_time_unix_nano
    steps = [event.step_started for event in events if event.WhichOneof("payload") == "step_started"]
    assert {TRACE} == {step.trace_id for step in steps}


@pytest.mark.mesh
async def test_a_turn_that_another_call_goes_on_with_stays_in_its_trace():
    rules = [
        {"contains": "weather", "calls": [{"name": "get_weather", "arguments": {"city": "Berlin"}}], "times": 1},
        {"text": "It is sunny."},
    ]
    async with (
        collecting() as (collector, endpoint),
        running_mesh(rules=rules, telemetry={"otlp_endpoint": endpoint}) as mesh,
        mesh.client() as client,
    ):
        session = await session_of(client, tools=[weather_tool()])
        request = agent_service_pb2.RunTurnRequest(session_id=session, messages=[user_message("the weather?")])
        metadata = (("traceparent", f"00-{TRACE}-{SPAN}-01"),)
        events = [event async for event in client.agent_stub.RunTurn(request, timeout=30, metadata=metadata)]
        turn = await client.get_turn(events[0].turn_id)
        await mesh.stop("agent")
        await mesh.start("agent")
        await until_up(client, "agent")

        call_id = turn.awaited_input.requests[0].call.call_id
        result = message_pb2.ToolResult(call_id=call_id, content="sunny")
        await client.submit_turn_input(turn.turn_id, [result])
        ended = await client.watch_turn(turn.turn_id).result()

    assert turn_pb2.TURN_STATUS_COMPLETED == ended.status
    assert {TRACE} == {step.trace_id for step in ended.steps}
    chats = [span for sender, span in collector.spans if (sender, span.name) == ("turnwire-inference", CHAT)]
    assert [TRACE, TRACE] == [span.trace_id.hex() for span in chats]


async def test_a_failed_call_carries_its_code_and_no_text():
    class Missing(Answering):
        async def CountTokens(self, request: Any, context: Any) -> messages.CountTokensResponse:
            raise NotFound("model", "what a user wrote")

    async with (
        collecting() as (collector, endpoint),
        hosted({"inference": inference(Missing())}, telemetry={"otlp_endpoint": endpoint}) as service,
        stub_of(service.address()) as stub,
    ):
        error = await failure(stub.CountTokens(messages.CountTokensRequest()))
        span = await collector.span("turnwire-inference", COUNT, "SERVER")

    assert isinstance(error, NotFound)
    assert grpc.StatusCode.NOT_FOUND.value[0] == _attributes(span)["rpc.grpc.status_code"]
    assert "ERROR_REASON_NOT_FOUND" == _attributes(span)["error.type"]
    # The caller's mistake is none of the server.
    assert trace_pb2.Status.STATUS_CODE_UNSET == span.status.code
    assert b"what a user wrote" not in span.SerializeToString()


async def test_a_defect_is_an_error_of_the_server():
    class Broken(Answering):
        async def CountTokens(self, request: Any, context: Any) -> messages.CountTokensResponse:
            raise KeyError("a defect")

    async with (
        collecting() as (collector, endpoint),
        hosted({"inference": inference(Broken())}, telemetry={"otlp_endpoint": endpoint}) as service,
        stub_of(service.address()) as stub,
    ):
        await failure(stub.CountTokens(messages.CountTokensRequest()))
        span = await collector.span("turnwire-inference", COUNT, "SERVER")

    assert trace_pb2.Status.STATUS_CODE_ERROR == span.status.code
    assert grpc.StatusCode.INTERNAL.value[0] == _attributes(span)["rpc.grpc.status_code"]


async def test_a_trace_that_its_caller_does_not_sample_is_not_exported():
    async with (
        collecting() as (collector, endpoint),
        hosted({"inference": inference()}, telemetry={"otlp_endpoint": endpoint}) as service,
        stub_of(service.address()) as stub,
    ):
        unsampled = (("traceparent", f"00-{TRACE}-{SPAN}-00"),)
        await stub.CountTokens(messages.CountTokensRequest(), metadata=unsampled)
        await stub.CountTokens(messages.CountTokensRequest())
        span = await collector.span("turnwire-inference", COUNT, "SERVER")
    assert TRACE not in {each.trace_id.hex() for _, each in collector.spans}
    assert b"" == span.parent_span_id


async def test_the_last_spans_get_out_when_the_process_ends():
    async with collecting() as (collector, endpoint):
        async with (
            hosted({"inference": inference()}, telemetry={"otlp_endpoint": endpoint}) as service,
            stub_of(service.address()) as stub,
        ):
            for _ in range(20):
                await stub.CountTokens(messages.CountTokensRequest())
        assert 20 == len(collector.spans)


@pytest.mark.parametrize("kind", ["nobody listens", "nobody answers", "the collector hangs"])
async def test_a_dead_collector_costs_nothing(kind: str):
    async with collecting() as (collector, endpoint):
        collector.hangs = True
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            if kind == "nobody answers":
                silent.listen(0)
            if kind != "the collector hangs":
                endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
            async with (
                hosted({"inference": inference()}, telemetry={"otlp_endpoint": endpoint}) as service,
                stub_of(service.address()) as stub,
            ):
                slowest = 0.0
                # More than a batch, so that the export begins while calls go on.
                for _ in range(30):
                    begun = time.monotonic()
                    calls = [stub.CountTokens(messages.CountTokensRequest(), timeout=10) for _ in range(20)]
                    await asyncio.gather(*calls)
                    slowest = max(slowest, time.monotonic() - begun)
                ending = time.monotonic()
            # An export may take five seconds, and each call would wait for its own.
            assert slowest < 4.0
            assert time.monotonic() - ending < 10.0


def test_nothing_of_opentelemetry_is_loaded_without_an_endpoint():
    script = """
import asyncio, sys
from tests.runtime.serving import hosted, inference
async def main():
    async with hosted({"inference": inference()}):
        print([name for name in sys.modules if name.startswith("opentelemetry")])
asyncio.run(main())
"""
    command = [sys.executable, "-c", script]
    path = f"{ROOT}:{ROOT / 'services'}"
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": path})
    assert "[]" == ran.stdout.strip()


def test_a_missing_extra_is_named_with_the_setting_that_needs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    monkeypatch.delitem(sys.modules, "turnwire.runtime.traces", raising=False)
    with pytest.raises(ExtraMissing, match=r"telemetry\.otlp_endpoint.*turnwire\[observability\]"):
        imported("turnwire.runtime.traces", setting="telemetry.otlp_endpoint")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-zz",
    ],
)
def test_what_is_no_trace_context_begins_a_new_trace(text: str):
    made = parsed_traceparent(next_traceparent(text))
    assert made is not None
    assert TRACE != made[0]
    assert "01" == made[2]


def test_a_trace_context_is_passed_on_with_a_span_of_our_own():
    made = parsed_traceparent(next_traceparent(f"00-{TRACE}-{SPAN}-00"))
    assert made is not None
    assert (TRACE, "00") == (made[0], made[2])
    assert SPAN != made[1]
    assert (TRACE, SPAN, "01") == parsed_traceparent(f"01-{TRACE}-{SPAN}-01-of a later version")
