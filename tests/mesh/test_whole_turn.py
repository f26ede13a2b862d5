"""The whole turn: shields, retrieval, tools and attachments, beside scripted peers."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.calling import dump
from tests.mesh.asking import check_log, folded, session_of, until, weather_tool
from tests.mesh.peers import Peers, running_peers
from turnwire.agent.v1 import agent_pb2, agent_service_pb2, step_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import error_pb2, generation_pb2, message_pb2, retrieval_pb2, shield_pb2
from turnwire.errors import NotFound, Unimplemented
from turnwire.testing.mesh import RunningMesh, Topology, running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

pytestmark = pytest.mark.mesh


def _call(name: str, text: str = "x") -> dict[str, Any]:
    return {"name": name, "arguments": {"text": text}}


RULES = [
    {"after_tool": True, "text": "All is done."},
    {"contains": "both", "calls": [_call("slow"), _call("failing")]},
    {"contains": "echo", "calls": [_call("echo", "a secret")]},
    {"contains": "table", "calls": [_call("code_interpreter")]},
    {"contains": "draw", "calls": [_call("drawing")]},
    {"contains": "search", "calls": [{"name": "memory_search", "arguments": {"query": "whales"}}]},
    {"contains": "brave", "calls": [_call("brave_search")]},
    {"contains": "mixed", "calls": [_call("echo"), {"name": "get_weather", "arguments": {"city": "Rome"}}]},
    {"contains": "whale", "text": "Whales are large [1]. They swim. They sing [2]."},
    {"contains": "plain", "text": "A plain answer."},
    {"contains": "leak", "text": "the password is a secret", "reasoning": "hm"},
]


def _tool(tool_id: str, **fields: Any) -> agent_pb2.AgentTool:
    return agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id=tool_id), **fields)


def _chunk(bank: str, document: str, text: str, **fields: Any) -> retrieval_pb2.RetrievedChunk:
    return retrieval_pb2.RetrievedChunk(bank_id=bank, document_id=document, title=document, text=text, **fields)


@asynccontextmanager
async def _mesh(topology: Topology = "one_process", **settings: Any) -> AsyncGenerator[tuple[RunningMesh, Peers, Any]]:
    async with running_peers() as peers:
        async with running_mesh(topology, rules=RULES, addresses=peers.addresses, **settings) as mesh:
            async with mesh.client() as client:
                yield mesh, peers, client


async def _events(client: Any, session: str, *messages: message_pb2.Message, **fields: Any) -> Sequence[Any]:
    request = agent_service_pb2.RunTurnRequest(session_id=session, messages=messages, **fields)
    events = [event async for event in client.agent_stub.RunTurn(request, timeout=60)]
    check_log(events)
    assert folded(events) == await client.get_turn(events[0].turn_id)
    return events


def _steps(turn: turn_pb2.Turn) -> list[str]:
    return [step_pb2.StepType.Name(step.type).removeprefix("STEP_TYPE_") for step in turn.steps]


async def test_every_step_starts_and_ends_and_parallel_calls_overlap():
    async with _mesh() as (_, peers, client):
        peers.chunks = [_chunk("library", "moby.md", "A whale."), _chunk("archive", "log.md", "Another.")]
        peers.failing_waits_for = 2
        session = await session_of(
            client,
            input_shields=["warn-both", "no-evil"],
            output_shields=["hide-done"],
            tools=[_tool("slow"), _tool("failing")],
            retrieval=agent_pb2.RetrievalConfig(bank_ids=["library", "archive"]),
        )
        request = agent_service_pb2.RunTurnRequest(session_id=session, messages=[user_message("both, please")])
        events: list[Any] = []
        async for event in client.agent_stub.RunTurn(request, timeout=60):
            events.append(event)
            if event.WhichOneof("payload") == "tool_call_completed":
                peers.gate.set()
        check_log(events)
        turn = folded(events)
        assert turn == await client.get_turn(turn.turn_id)

        expected = ["SHIELD_CALL", "MEMORY_RETRIEVAL", "INFERENCE", "TOOL_EXECUTION", "INFERENCE", "SHIELD_CALL"]
        assert expected == _steps(turn)
        assert all(step.status == step_pb2.STEP_STATUS_COMPLETED for step in turn.steps)
        slow, failing = turn.steps[3].tool_execution.executions
        assert 2 == peers.most_at_once
        assert failing.end_time.ToMicroseconds() < slow.end_time.ToMicroseconds()
        assert ("at last", "It broke.") == (slow.result.content, failing.result.failure.message)
        assert "slow begins\n" == slow.output
        assert "All is [hidden]." == turn.output.parts[0].text
        levels = [verdict.level for verdict in turn.steps[0].shield_call.verdicts]
        assert [shield_pb2.VIOLATION_LEVEL_WARN, shield_pb2.VIOLATION_LEVEL_UNSPECIFIED] == levels


async def test_an_input_that_a_shield_blocks_is_in_no_event_no_row_and_no_later_context():
    async with _mesh() as (mesh, _, client):
        session = await session_of(client, input_shields=["no-evil"])
        events = await _events(client, session, user_message("an evil plan"))
        turn = folded(events)

        assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
        assert "I do not talk of evil." == turn.output.parts[0].text
        assert message_pb2.STOP_REASON_SHIELD == turn.output.stop_reason
        assert ["SHIELD_CALL"] == _steps(turn)
        assert "evil plan" not in "".join(str(event) for event in events)
        rows = [cell for rows in dump(mesh.folder).values() for row in rows for cell in row]
        assert not [cell for cell in rows if isinstance(cell, bytes) and b"evil plan" in cell]
        later = folded(await _events(client, session, user_message("three short words")))
        assert 3 == later.usage.prompt_tokens


async def test_what_passes_the_input_shields_is_what_the_model_and_later_turns_read():
    async with _mesh() as (_, peers, client):
        session = await session_of(client, input_shields=["hide-4711"])
        turn = folded(await _events(client, session, user_message("my pin is 4711")))

        assert "my pin is [hidden]" == turn.output.parts[0].text
        assert "my pin is [hidden]" == turn.input[0].parts[0].text
        later = folded(await _events(client, session, user_message("say it again")))
        assert 4 + 4 + 3 == later.usage.prompt_tokens
        assert ["my pin is 4711", "say it again"] == [each.messages[0].parts[0].text for each in peers.shielded]


async def test_an_answer_is_held_until_its_shields_pass_it():
    async with _mesh() as (mesh, _, client):
        session = await session_of(client, output_shields=["no-password"])
        events = await _events(client, session, user_message("leak"))
        turn = folded(events)

        assert "I do not talk of password." == turn.output.parts[0].text
        assert ["INFERENCE", "SHIELD_CALL"] == _steps(turn)
        assert message_pb2.STOP_REASON_SHIELD == turn.steps[0].inference.stop_reason
        assert "a secret" not in "".join(str(event) for event in events)
        rows = [cell for rows in dump(mesh.folder).values() for row in rows for cell in row]
        assert not [cell for cell in rows if isinstance(cell, bytes) and b"a secret" in cell]


async def test_arguments_and_results_of_tools_are_held_until_their_shields_pass_them():
    async with _mesh() as (_, peers, client):
        tool = _tool("echo", input_shields=["hide-secret"], output_shields=["hide-text"])
        events = await _events(client, await session_of(client, tools=[tool]), user_message("echo"))
        turn = folded(events)

        assert "a secret" not in "".join(str(event) for event in events)
        assert '{"text": "a [hidden]"}' == peers.executed[0].call.arguments_json
        execution = turn.steps[-2].tool_execution.executions or turn.steps[2].tool_execution.executions
        assert '{"[hidden]": "a [hidden]"}' == execution[0].result.content
        points = [step.shield_call.point for step in turn.steps if step.HasField("shield_call")]
        assert [shield_pb2.SHIELD_POINT_TOOL_ARGUMENTS, shield_pb2.SHIELD_POINT_TOOL_RESULT] == points


@pytest.mark.parametrize("where", ["input_shields", "output_shields"])
async def test_a_tool_shield_that_objects_answers_and_keeps_the_turn(where: str):
    async with _mesh() as (_, peers, client):
        tool = _tool("echo", **{where: ["no-secret"]})
        turn = folded(await _events(client, await session_of(client, tools=[tool]), user_message("echo")))

        assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
        assert "I do not talk of secret." == turn.output.parts[0].text
        assert (where == "output_shields") == bool(peers.executed)


@pytest.mark.parametrize(("policy", "passes"), [("CLOSED", False), ("OPEN", True)])
async def test_a_shield_that_cannot_judge_fails_closed_unless_told_otherwise(policy: str, passes: bool):
    async with _mesh() as (_, peers, client):
        peers.broken_shields = {"no-evil"}
        value = agent_pb2.ShieldFailurePolicy.Value(f"SHIELD_FAILURE_POLICY_{policy}")
        session = await session_of(client, input_shields=["no-evil"], shield_failure_policy=value)
        turn = folded(await _events(client, session, user_message("hello")))

        verdict = turn.steps[0].shield_call.verdicts[0]
        assert error_pb2.ERROR_REASON_SHIELD_UNAVAILABLE == verdict.failure.reason
        assert passes == (turn.output.parts[0].text == "hello")
        assert passes == (verdict.level == shield_pb2.VIOLATION_LEVEL_WARN)


async def test_an_answer_cites_what_it_marks_and_later_turns_do_not_read_what_was_retrieved():
    async with _mesh() as (_, peers, client):
        peers.chunks = [_chunk("library", "a.md", "Large.", heading="Size"), _chunk("library", "b.md", "Song.", page=3)]
        session = await session_of(client, retrieval=agent_pb2.RetrievalConfig(bank_ids=["library"], max_chunks=7))
        turn = folded(await _events(client, session, user_message("a whale?")))

        text = turn.output.parts[0].text.encode()
        cited = [(each.document_id, text[each.start_byte : each.end_byte].decode()) for each in turn.output.citations]
        assert [("a.md", "Whales are large"), ("b.md", "They sing")] == cited
        assert (7, "a whale?") == (peers.queries[0].max_chunks, peers.queries[0].messages[0].parts[0].text)
        words = turn.usage.prompt_tokens
        assert words > 10
        peers.chunks = []
        later = folded(await _events(client, session, user_message("hello")))
        assert 2 + 9 + 1 == later.usage.prompt_tokens


async def test_an_answer_without_a_mark_rests_on_all_that_was_given():
    async with _mesh() as (_, peers, client):
        peers.chunks = [
            _chunk("library", "a.md", "One."),
            _chunk("library", "a.md", "Two."),
            _chunk("library", "b", "3"),
        ]
        session = await session_of(client, retrieval=agent_pb2.RetrievalConfig(bank_ids=["library"]))
        turn = folded(await _events(client, session, user_message("a plain question")))

        assert ["a.md", "b"] == [each.document_id for each in turn.output.citations]


async def test_a_model_may_write_the_query():
    async with _mesh() as (_, peers, client):
        generator = agent_pb2.LlmQueryGenerator(template="Query for: {{messages}}")
        retrieval = agent_pb2.RetrievalConfig(bank_ids=["library"], llm=generator)
        turn = folded(await _events(client, await session_of(client, retrieval=retrieval), user_message("hello")))

        assert "Query for: user: hello" == peers.queries[0].messages[0].parts[0].text
        assert "Query for: user: hello" == turn.steps[0].memory_retrieval.query
        assert 4 + 1 == turn.usage.prompt_tokens


async def test_attachments_go_to_the_sessions_bank_which_goes_with_the_session():
    async with _mesh() as (_, peers, client):
        session = await session_of(client)
        said = user_message("read this")
        said.attachments.add(text="It is red.", name="note.md")
        said.attachments.add(url="http://example.org/x", name="bad.pdf")
        turn = folded(await _events(client, session, said))

        bank = f"session-{session}"
        assert ["note.md", "bad.pdf"] == [document.title for document in peers.inserted]
        retrieval = turn.steps[0].memory_retrieval
        assert ([bank], 1, 1) == (
            list(retrieval.bank_ids),
            len(retrieval.inserted_document_ids),
            len(retrieval.refused_documents),
        )
        assert bank == (await client.get_session(session)).bank_id
        later = folded(await _events(client, session, user_message("and now?")))
        assert [bank] == list(later.steps[0].memory_retrieval.bank_ids)
        assert not later.steps[0].memory_retrieval.inserted_document_ids
        await client.delete_session(session)
        with pytest.raises(NotFound):
            await session_of(client, retrieval=agent_pb2.RetrievalConfig(bank_ids=[bank]))


async def test_attachments_are_files_where_the_interpreter_has_to_be_called():
    async with _mesh() as (_, peers, client):
        choice = generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_NAMED, name="code_interpreter")
        session = await session_of(client, tools=[_tool("code_interpreter")], tool_choice=choice)
        said = user_message("sum the table")
        said.attachments.add(text="a,b\n1,2\n", name="table.csv")
        turn = folded(await _events(client, session, said))

        assert ["table.csv"] == [each.name for each in peers.executed[0].attachments]
        assert not peers.inserted
        assert "MEMORY_RETRIEVAL" not in _steps(turn)
        assert not turn.session_bank_id


async def test_files_that_tools_make_travel_to_the_answer_and_are_no_input():
    async with _mesh() as (_, _peers, client):
        turn = folded(await _events(client, await session_of(client, tools=[_tool("drawing")]), user_message("draw")))

        assert ["figure.png"] == [each.name for each in turn.output.attachments]
        assert not turn.input[0].attachments


async def test_memory_search_is_a_tool():
    async with _mesh() as (_, peers, client):
        peers.chunks = [_chunk("library", "moby.md", "Call me Ishmael.")]
        search = agent_pb2.AgentTool(memory_search=agent_pb2.MemorySearchTool(bank_ids=["library"]))
        turn = folded(await _events(client, await session_of(client, tools=[search]), user_message("search")))

        result = turn.steps[1].tool_execution.executions[0].result
        assert "[1] moby.md\nCall me Ishmael." == result.content
        assert ("whales", 5) == (peers.queries[0].messages[0].parts[0].text, peers.queries[0].max_chunks)


async def test_a_search_in_memory_ends_at_its_limit_and_the_turn_goes_on():
    async with _mesh() as (_, peers, client):
        peers.delay = 30.0
        search = agent_pb2.AgentTool(memory_search=agent_pb2.MemorySearchTool(bank_ids=["library"]))
        search.limits.total.FromMilliseconds(300)
        turn = folded(await _events(client, await session_of(client, tools=[search]), user_message("search")))

        assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
        failure = turn.steps[1].tool_execution.executions[0].result.failure
        assert (error_pb2.ERROR_REASON_DEADLINE_EXCEEDED, "memory") == (failure.reason, failure.metadata["service"])


async def test_limits_that_a_search_in_memory_does_not_have_are_refused():
    async with _mesh() as (_, _peers, client):
        search = agent_pb2.AgentTool(memory_search=agent_pb2.MemorySearchTool(bank_ids=["library"]))
        search.limits.silence.FromMilliseconds(300)
        with pytest.raises(Unimplemented, match="limits of a search in memory"):
            await session_of(client, tools=[search])


async def test_a_llama_model_may_call_web_search_brave_search():
    async with _mesh() as (_, peers, client):
        await _events(client, await session_of(client, tools=[_tool("web_search")]), user_message("brave"))

        assert ["web_search"] == [each.call.name for each in peers.executed]


async def test_tools_of_the_mesh_run_before_the_turn_waits_for_its_caller():
    async with _mesh() as (_, _peers, client):
        session = await session_of(client, tools=[_tool("echo"), weather_tool()])
        stream = client.run_turn(session, "mixed", tools={"get_weather": lambda city: f"sunny in {city}"})
        turn = await stream.result()

        echo, weather = turn.steps[1].tool_execution.executions
        assert ({"text": "x"}, "sunny in Rome") == (json.loads(echo.result.content), weather.result.content)
        assert (False, True) == (echo.by_caller, weather.by_caller)
        check_log([event async for event in client.watch_turn(stream.turn_id)])


async def test_cancelling_stops_the_calls_that_run_and_says_so():
    async with _mesh() as (_, peers, client):
        peers.failing_waits_for = 2
        stream = client.run_turn(await session_of(client, tools=[_tool("slow"), _tool("failing")]), "both")
        answer = None
        async with stream:
            async for event in stream:
                if event.WhichOneof("payload") == "tool_call_completed":
                    answer = await client.cancel_turn(stream.turn_id)
        assert answer is not None

        calls = [call.call_id for call in answer.calls]
        assert calls == peers.cancelled
        assert [turn_pb2.CancelledCall.OUTCOME_STOPPED] == [call.outcome for call in answer.calls]

        async def quiet() -> bool:
            return peers.running == 0

        await until(quiet)
        check_log([event async for event in client.watch_turn(stream.turn_id)])


async def test_what_does_not_exist_is_refused_by_name():
    async with _mesh() as (_, _peers, client):
        wrong: list[dict[str, Any]] = [
            {"input_shields": ["none"]},
            {"tools": [_tool("none")]},
            {"retrieval": agent_pb2.RetrievalConfig(bank_ids=["none"])},
            {"tools": [_tool("echo", output_shields=["none"])]},
        ]
        for fields in wrong:
            with pytest.raises(NotFound, match="none"):
                await client.create_agent(agent_pb2.AgentConfig(model="scripted", **fields))


@pytest.mark.faults
@pytest.mark.parametrize(
    "moment",
    [
        "SHIELD_CALL",
        "MEMORY_RETRIEVAL",
        pytest.param("INFERENCE", marks=pytest.mark.everyday),
        pytest.param("TOOL_EXECUTION", marks=pytest.mark.everyday),
        "the last shield",
    ],
)
async def test_a_turn_goes_on_where_its_process_died(moment: str):
    async with _mesh(topology="processes") as (mesh, peers, client):
        peers.chunks = [_chunk("library", "moby.md", "A whale.")]
        peers.gate.set()
        peers.delay = 0.15
        session = await session_of(
            client,
            input_shields=["no-evil"],
            output_shields=["hide-done"],
            tools=[_tool("slow"), _tool("failing")],
            retrieval=agent_pb2.RetrievalConfig(bank_ids=["library"]),
        )
        stream = client.run_turn(session, "both, please")
        killed = False
        async with stream:
            async for event in stream:
                kind = step_pb2.StepType.Name(event.step_started.type).removeprefix("STEP_TYPE_")
                point = event.step_started.shield_call.point
                now = point == shield_pb2.SHIELD_POINT_OUTPUT if moment == "the last shield" else kind == moment
                if now and not killed:
                    killed = True
                    await mesh.kill("agent")
                    await mesh.start("agent")

        turn = await client.get_turn(stream.turn_id)
        assert turn == stream.turn
        assert (turn_pb2.TURN_STATUS_COMPLETED, 1) == (turn.status, turn.recoveries)
        assert "All is [hidden]." == turn.output.parts[0].text
        check_log([event async for event in client.watch_turn(stream.turn_id)])
