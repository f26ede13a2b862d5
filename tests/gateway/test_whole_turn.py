"""The whole turn of the release: every step under one id, calls at once, one fold whatever the protocol."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from google.protobuf import json_format

from tests.fakes.search_servers import fake_search
from tests.gateway.edge import HEAD, Edge, running_edge, stream_answer
from tests.gateway.test_turn_events import reading
from tests.mesh.asking import check_log, folded, session_of
from tests.mesh.peers import running_peers
from tests.mesh.slow_mesh import BANKS, SERVICES, fill_banks, providers, serving_vectors
from tests.tool_executor.calling import searching
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, event_pb2
from turnwire.client.client import Client, user_message
from turnwire.common.v1 import retrieval_pb2
from turnwire_gateway.methods import METHODS

pytestmark = pytest.mark.mesh

RUN = "turnwire.agent.v1.AgentService/RunTurn"
WATCH = "turnwire.agent.v1.AgentService/WatchTurn"
TOOLS = ("slow", "failing")
RULES: list[dict[str, Any]] = [
    {"after_tool": True, "text": "Both were asked [1]: ä \U0001f600."},
    {"contains": "both", "calls": [{"name": name, "arguments": {"text": "x"}} for name in TOOLS]},
]


def _chunk(bank: str) -> retrieval_pb2.RetrievedChunk:
    return retrieval_pb2.RetrievedChunk(bank_id=bank, document_id=f"doc of {bank}", title=bank, text=f"Of {bank}.")


async def _live(edge: Edge, protocol: str, request: agent_service_pb2.RunTurnRequest, started: asyncio.Event) -> Any:
    """Runs, or attaches to, the turn by a protocol and returns its events, read while they happen."""
    match protocol:
        case "grpc":
            started.set()
            return (await edge.grpc(RUN, request.SerializeToString())).messages
        case "connect":
            started.set()
            return (await edge.connect(RUN, request.SerializeToString())).messages
        case "connect json":
            body = json_format.MessageToJson(request).encode()
            async with edge.post(RUN, HEAD.pack(0, len(body)) + body, "application/connect+json") as response:
                started.set()
                return stream_answer(METHODS[RUN], await response.read(), "json").messages
        case "grpc-web":
            started.set()
            return (await edge.grpc_web(RUN, request.SerializeToString())).messages
        case "grpc-web-text":
            started.set()
            return (await edge.grpc_web(RUN, request.SerializeToString(), text=True)).messages
        case _:
            async with reading(edge, request.turn_id) as (response, frames):
                assert 200 == response.status
                started.set()
                return [frame.event async for frame in frames if "data" in frame.fields]


async def _call_completed(client: Client, turn_id: str) -> None:
    """Returns when one of the turn's calls has its result."""
    async with client.watch_turn(turn_id) as watching:
        async for event in watching:
            if event.WhichOneof("payload") == "tool_call_completed":
                return
    raise AssertionError("the turn ended without a call")


async def test_the_whole_turn_is_one_fold_over_grpc_connect_grpc_web_and_sse():
    async with running_peers() as peers:
        peers.chunks = [_chunk("library"), _chunk("archive")]
        peers.failing_waits_for = 2
        async with running_edge(rules=RULES, addresses=peers.addresses) as edge, edge.mesh.client() as client:
            session_id = await session_of(
                client,
                input_shields=["warn-both", "no-harpoon"],
                output_shields=["hide-secret"],
                retrieval=agent_pb2.RetrievalConfig(bank_ids=["library", "archive"]),
                tools=[agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id=name)) for name in TOOLS],
            )
            request = agent_service_pb2.RunTurnRequest(
                session_id=session_id, turn_id="turn_whole", messages=[user_message("ask both")]
            )
            began = [asyncio.Event() for _ in range(6)]
            protocols = ("connect", "grpc", "connect json", "grpc-web", "grpc-web-text", "sse")
            readers = [asyncio.create_task(_live(edge, protocols[0], request, began[0]))]
            while peers.running < 1:
                await asyncio.sleep(0.01)
            await _call_completed(client, "turn_whole")  # the slow tool waits, and with it the turn
            for protocol, event in zip(protocols[1:], began[1:], strict=True):
                readers.append(asyncio.create_task(_live(edge, protocol, request, event)))
            await asyncio.gather(*(event.wait() for event in began))
            peers.gate.set()
            found: list[list[event_pb2.StepEvent]] = await asyncio.gather(*readers)
            expected = await client.get_turn("turn_whole")
            got = await edge.connect("turnwire.agent.v1.AgentService/GetTurn", b'{"turnId": "turn_whole"}', "json")

    assert dict.fromkeys(protocols, expected) == {
        protocol: folded(events) for protocol, events in zip(protocols, found, strict=True)
    }
    assert expected == getattr(got.messages[0], "turn")  # noqa: B009 - a field of one response
    for events in found:
        check_log([event for event in events if event.WhichOneof("payload") != "heartbeat"])
    kinds = [agent_kind(step.type) for step in expected.steps]
    assert ["SHIELD_CALL", "MEMORY_RETRIEVAL", "INFERENCE", "TOOL_EXECUTION", "INFERENCE", "SHIELD_CALL"] == kinds
    assert all(step.HasField("start_time") and step.HasField("end_time") for step in expected.steps)
    assert {"library", "archive"} == {chunk.bank_id for chunk in expected.steps[1].memory_retrieval.chunks}
    slow, failing = expected.steps[3].tool_execution.executions
    assert ("at last", "It broke.") == (slow.result.content, failing.result.failure.message)
    assert 2 == peers.most_at_once
    assert slow.start_time.ToNanoseconds() < failing.end_time.ToNanoseconds() < slow.end_time.ToNanoseconds()
    assert "Both were asked [1]: ä \U0001f600." == expected.output.parts[0].text
    assert json.loads(json_format.MessageToJson(expected))["output"]["citations"]


async def test_the_whole_turn_of_the_real_services_is_one_fold_everywhere():
    """Rules, secrets and a judge; two banks of vectors; a search that waits and code that fails, both at once."""
    calls = [
        {"name": "web_search", "arguments": {"query": "whales"}},
        {"name": "code_interpreter", "arguments": {"code": "print('before')\n1 / 0"}},
    ]
    rules: list[dict[str, Any]] = [
        {"after_tool": True, "text": "Both were asked [1]: a torpedo, ä \U0001f600."},
        {"contains": "both", "calls": calls},
    ]
    shields = ["house-rules", "secrets", "llama-guard"]
    tools = [agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id=str(call["name"]))) for call in calls]
    async with fake_search() as fake, serving_vectors() as vectors:
        fake.script = ["hang"]
        configured = providers(vectors.provider, rules)
        configured["tool_executor"].append(searching(fake))
        async with (
            running_edge(
                services=SERVICES,
                providers=configured,
                access={"mesh_secret": "the secret of the mesh of a test"},
                sandbox={"preload": [], "packages": []},
                memory={"docs_dir": ""},
            ) as edge,
            edge.mesh.client() as client,
        ):
            await fill_banks(client)
            session_id = await session_of(
                client,
                input_shields=shields,
                output_shields=shields,
                retrieval=agent_pb2.RetrievalConfig(bank_ids=BANKS),
                tools=tools,
            )
            request = agent_service_pb2.RunTurnRequest(
                session_id=session_id, turn_id="turn_real", messages=[user_message("ask both of the harpoon")]
            )
            protocols = ("connect", "grpc", "connect json", "grpc-web", "grpc-web-text", "sse")
            began = [asyncio.Event() for _ in protocols]
            readers = [asyncio.create_task(_live(edge, protocols[0], request, began[0]))]
            await fake.asked.wait()
            await _call_completed(client, "turn_real")  # the code has failed, and the search still waits
            for protocol, event in zip(protocols[1:], began[1:], strict=True):
                readers.append(asyncio.create_task(_live(edge, protocol, request, event)))
            await asyncio.gather(*(event.wait() for event in began))
            fake.gate.set()
            found: list[list[event_pb2.StepEvent]] = await asyncio.gather(*readers)
            expected = await client.get_turn("turn_real")

    assert dict.fromkeys(protocols, expected) == {
        protocol: folded(events) for protocol, events in zip(protocols, found, strict=True)
    }
    for events in found:
        seen = [event for event in events if event.WhichOneof("payload") != "heartbeat"]
        check_log(seen)
        begun = [event.step_id for event in seen if event.WhichOneof("payload") == "step_started"]
        ended = [event.step_id for event in seen if event.WhichOneof("payload") == "step_completed"]
        # Shields of an answer run within the step that wrote it.
        steps = [step.step_id for step in expected.steps]
        assert (steps, [*steps[:4], steps[5], steps[4]]) == (begun, ended)
    kinds = [agent_kind(step.type) for step in expected.steps]
    assert ["SHIELD_CALL", "MEMORY_RETRIEVAL", "INFERENCE", "TOOL_EXECUTION", "INFERENCE", "SHIELD_CALL"] == kinds
    assert all(step.HasField("start_time") and step.HasField("end_time") for step in expected.steps)
    for step in (expected.steps[0], expected.steps[5]):
        assert shields == [verdict.shield_id for verdict in step.shield_call.verdicts]
        assert not any(verdict.HasField("failure") for verdict in step.shield_call.verdicts)
    assert set(BANKS) == {chunk.bank_id for chunk in expected.steps[1].memory_retrieval.chunks}
    slow, failing = expected.steps[3].tool_execution.executions
    assert "Zweite Seite" in slow.result.content
    assert "ZeroDivisionError" in failing.result.failure.message
    assert failing.output.startswith("before\nTraceback")
    assert failing.start_time.ToNanoseconds() < slow.end_time.ToNanoseconds()
    assert slow.start_time.ToNanoseconds() < failing.end_time.ToNanoseconds() < slow.end_time.ToNanoseconds()
    assert "Both were asked [1]: a [hidden], ä \U0001f600." == expected.output.parts[0].text
    assert expected.output.citations


def agent_kind(number: int) -> str:
    from turnwire.agent.v1 import step_pb2

    return step_pb2.StepType.Name(number).removeprefix("STEP_TYPE_")  # pyright: ignore[reportArgumentType] - a number of the enum
