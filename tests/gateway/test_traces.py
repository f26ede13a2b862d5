"""Spans through the gateway: one trace a turn, from the caller over HTTP to the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google.protobuf import json_format

from tests.gateway.edge import running_edge
from tests.mesh.asking import session_of
from tests.runtime.test_traces import CHAT, RUN, SPAN, TRACE, Collector, collecting
from turnwire.agent.v1 import agent_service_pb2
from turnwire.client.client import user_message

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1 import trace_pb2

pytestmark = pytest.mark.mesh


async def _way(collector: Collector, trace: str) -> list[trace_pb2.Span]:
    """Returns the spans of a turn, from the edge inwards."""
    return [
        await collector.span(service, name, kind, trace=trace)
        for service, name, kind in (
            ("turnwire-gateway", RUN, "CLIENT"),
            ("turnwire-agent", RUN, "SERVER"),
            ("turnwire-agent", CHAT, "CLIENT"),
            ("turnwire-inference", CHAT, "SERVER"),
        )
    ]


@pytest.mark.parametrize("protocol", ["connect", "grpc-web"])
async def test_a_turn_through_the_gateway_is_one_trace_of_its_callers(protocol: str):
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    async with (
        collecting() as (collector, endpoint),
        running_edge(telemetry={"otlp_endpoint": endpoint}) as edge,
        edge.mesh.client() as client,
    ):
        session = await session_of(client)
        request = agent_service_pb2.RunTurnRequest(session_id=session, messages=[user_message("hello")])
        sent = request.SerializeToString()
        call = edge.connect(RUN, sent, headers=headers) if protocol == "connect" else None
        answer = await (call or edge.grpc_web(RUN, sent, headers=headers))
        way = await _way(collector, TRACE)

    assert SPAN == way[0].parent_span_id.hex()
    assert [span.span_id for span in way[:-1]] == [span.parent_span_id for span in way[1:]]
    assert [0] * 4 == [_status(span) for span in way]
    told = [json_format.MessageToDict(event) for event in answer.messages]
    steps = [event["stepStarted"] for event in told if "stepStarted" in event]
    assert {TRACE} == {step["traceId"] for step in steps}


async def test_an_openai_client_without_a_trace_begins_one():
    async with collecting() as (collector, endpoint), running_edge(telemetry={"otlp_endpoint": endpoint}) as edge:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
        async with edge.http.post(f"{edge.url}/v1/chat/completions", json=body) as response:
            assert 200 == response.status
        asked = await collector.span("turnwire-gateway", CHAT, "CLIENT")
        answered = await collector.span("turnwire-inference", CHAT, "SERVER", trace=asked.trace_id.hex())

    assert asked.span_id == answered.parent_span_id


def _status(span: trace_pb2.Span) -> int:
    return next(entry.value.int_value for entry in span.attributes if entry.key == "rpc.grpc.status_code")
