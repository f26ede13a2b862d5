"""Each service killed in the middle of each kind of step that needs it: visible, bounded, and over when it is back."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format

from tests.mesh.asking import check_log, folded, until, until_up
from tests.mesh.slow_mesh import ANSWER, SlowMesh, running_slow_mesh
from turnwire.agent.v1 import agent_service_pb2, event_pb2, step_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import error_pb2, message_pb2, shield_pb2
from turnwire.errors import Unavailable, from_rpc_error
from turnwire.fold import TERMINAL_PAYLOADS
from turnwire.ids import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

pytestmark = [pytest.mark.mesh, pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]

STEPS = ("input", "retrieval", "inference", "tool", "output")
EACH_STEP = [*STEPS[:3], pytest.param("tool", marks=pytest.mark.everyday), "output"]
NEEDED = [
    ("safety", "input"),
    ("inference", "input"),  # the judge among the shields is a model
    ("memory", "retrieval"),
    ("inference", "retrieval"),  # a question is a vector of a model
    pytest.param("inference", "inference", marks=pytest.mark.everyday),
    ("tool_executor", "tool"),
    ("sandbox_runner", "tool"),
    ("safety", "output"),
    ("inference", "output"),
]
"""Every service at every kind of step that it has a part in; the agent and the gateway have one in all."""
PATIENCE = 45.0
"""A turn that has not ended, or paused, by then hangs."""
WHOLE = ["SHIELD_CALL", "MEMORY_RETRIEVAL", "INFERENCE", "TOOL_EXECUTION", "INFERENCE", "SHIELD_CALL"]
_HELD_BACK = "This could not be checked, so it is held back. Try again later."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slow() -> AsyncGenerator[SlowMesh]:
    async with running_slow_mesh() as running:
        yield running


def _is_at(event: event_pb2.StepEvent, step: str) -> bool:
    """True for the event that tells that the slow step is under way."""
    started = event.step_started
    match step:
        case "tool":
            return event.step_delta.part == event_pb2.DELTA_PART_TOOL_OUTPUT
        case "retrieval":
            return started.type == step_pb2.STEP_TYPE_MEMORY_RETRIEVAL
        case "inference":
            return started.type == step_pb2.STEP_TYPE_INFERENCE
        case _:
            point = shield_pb2.SHIELD_POINT_INPUT if step == "input" else shield_pb2.SHIELD_POINT_OUTPUT
            return started.type == step_pb2.STEP_TYPE_SHIELD_CALL and started.shield_call.point == point


async def _is_under_way(slow: SlowMesh, step: str) -> None:
    """Waits until the step has reached what makes it slow."""
    if step == "tool":
        return  # it has written something

    async def reached() -> bool:
        if step == "retrieval":
            return any("slow retrieval" in text for text in slow.embedded)
        found = {each.provider_id: each.detail for each in await slow.client.list_providers("inference")}
        return "1 open streams" == found["scripted" if step == "inference" else "judge"]

    await until(reached)


async def _request(slow: SlowMesh, text: str, turn_id: str = "") -> agent_service_pb2.RunTurnRequest:
    slow.embedded.clear()
    session = await slow.client.create_session(slow.agent_id)
    return agent_service_pb2.RunTurnRequest(
        session_id=session.session_id, turn_id=turn_id, messages=[user_message(text)]
    )


async def _accepted(slow: SlowMesh, text: str, turn_id: str = "") -> tuple[Any, event_pb2.StepEvent]:
    """Begins a turn, again while a service of it is still looked for; returns its stream and its first event."""
    request = await _request(slow, text, turn_id)
    while True:
        call: Any = slow.client.agent_stub.RunTurn(request, timeout=PATIENCE)
        try:
            return call, await anext(aiter(call))
        except grpc.RpcError as error:
            refused = from_rpc_error(error, service="agent")
            assert isinstance(refused, Unavailable), refused
        await asyncio.sleep(0.1)


async def _hit(
    slow: SlowMesh, victim: str, step: str, *, back: bool = False, turn_id: str = ""
) -> list[event_pb2.StepEvent]:
    """Runs a turn, kills a service in the middle of a step, and returns what the stream still gave, to its end.

    Raises:
        Unavailable: the stream was cut.
    """
    call, first = await _accepted(slow, f"slow {step}: harpoon", turn_id)
    events = [first]
    killed = False
    try:
        async for event in call:
            events.append(event)
            if not killed and _is_at(event, step):
                await _is_under_way(slow, step)
                await slow.kill(victim)
                killed = True
                if back:
                    await slow.start(victim)
    except grpc.RpcError as error:
        raise from_rpc_error(error, service="agent") from error
    finally:
        call.cancel()
    assert killed, f"the turn was over before its step was reached: {folded(events)}"
    return events


async def _the_next_turn_works(slow: SlowMesh) -> None:
    """Runs a turn with every kind of step."""
    call, first = await _accepted(slow, "compute: harpoon")
    turn = folded([first, *[event async for event in call]])
    results = [each.result.content for step in turn.steps for each in step.tool_execution.executions]
    assert (turn_pb2.TURN_STATUS_COMPLETED, ANSWER, ["42"]) == (turn.status, _text(turn), results), turn
    assert (WHOLE, []) == (_kinds(turn), _failures(turn))


def _kinds(turn: turn_pb2.Turn) -> list[str]:
    return [step_pb2.StepType.Name(step.type).removeprefix("STEP_TYPE_") for step in turn.steps]


def _text(turn: turn_pb2.Turn) -> str:
    return "".join(part.text for part in turn.output.parts).strip()


def _failures(turn: turn_pb2.Turn) -> list[error_pb2.Failure]:
    """Returns all that a reader of the turn is told of failures."""
    found = [verdict.failure for step in turn.steps for verdict in step.shield_call.verdicts]
    found += [each.result.failure for step in turn.steps for each in step.tool_execution.executions]
    return [failure for failure in [*found, turn.failure] if failure.reason]


async def _check(slow: SlowMesh, events: list[event_pb2.StepEvent]) -> turn_pb2.Turn:
    """Returns the turn of events, which are sound."""
    check_log(events)
    turn = folded(events)
    assert turn == await slow.client.get_turn(turn.turn_id)
    return turn


def _check_told(turn: turn_pb2.Turn, victim: str, step: str) -> None:
    """Asserts that a turn ended, or asks, and says which service was away and what to do."""
    told = _failures(turn)
    if step in {"input", "output"}:
        # Nothing passes that nobody looked at; the turn is a normal one with the refusal as its answer.
        assert (turn_pb2.TURN_STATUS_COMPLETED, _HELD_BACK) == (turn.status, _text(turn))
        assert message_pb2.STOP_REASON_SHIELD == turn.output.stop_reason
        assert {error_pb2.ERROR_REASON_SHIELD_UNAVAILABLE} == {failure.reason for failure in told}
        shields = {"house-rules", "secrets", "llama-guard"} if victim == "safety" else {"llama-guard"}
        assert shields == {failure.metadata["shield"] for failure in told}
        assert all(f"The {victim} service cannot be reached" in failure.message for failure in told)
        assert all("`turnwire status` shows what runs" in failure.message for failure in told)
    elif step == "tool":
        # It had begun, and code has effects: a person decides, whether its runner is away or the executor itself.
        (failure,) = told
        assert error_pb2.ERROR_REASON_OUTCOME_UNKNOWN == failure.reason
        away = "The tool_executor service cannot be reached"
        why = "the sandbox went away" if victim == "sandbox_runner" else away
        assert all(word in failure.message for word in (why, "look at what it may have done")), failure
        assert turn_pb2.TURN_STATUS_AWAITING_INPUT == turn.status
    else:
        assert turn_pb2.TURN_STATUS_FAILED == turn.status
        assert [error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE] == [failure.reason for failure in told]
        assert victim == turn.failure.metadata["service"]
        assert f"The {victim} service cannot be reached" in turn.failure.message
        assert "`turnwire status` shows what runs" in turn.failure.message


@pytest.mark.parametrize(("victim", "step"), NEEDED)
async def test_a_turn_whose_service_is_killed_and_stays_away_ends_and_says_which(
    slow: SlowMesh, victim: str, step: str
):
    try:
        turn = folded(await _hit(slow, victim, step))
    finally:
        await slow.start(victim)

    _check_told(turn, victim, step)
    await _the_next_turn_works(slow)


@pytest.mark.parametrize(("victim", "step"), NEEDED)
async def test_a_turn_whose_service_is_killed_and_comes_back_goes_on_or_asks(slow: SlowMesh, victim: str, step: str):
    turn = await _check(slow, await _hit(slow, victim, step, back=True))

    if _failures(turn) and step != "tool":
        # A restart may take longer than a step waits, on a busy machine: then it is as if the service stayed away.
        _check_told(turn, victim, step)
    elif step == "tool":
        # Code has effects: it is not run twice, and a person decides.
        assert turn_pb2.TURN_STATUS_AWAITING_INPUT == turn.status
        assert [error_pb2.ERROR_REASON_OUTCOME_UNKNOWN] == [failure.reason for failure in _failures(turn)]
    else:
        answer = "A slow-answer." if step == "output" else ANSWER
        assert (turn_pb2.TURN_STATUS_COMPLETED, answer, []) == (turn.status, _text(turn), _failures(turn))
    await _the_next_turn_works(slow)


@pytest.mark.parametrize("step", EACH_STEP)
async def test_a_turn_whose_owner_is_killed_says_so_and_goes_on_when_it_is_back(slow: SlowMesh, step: str):
    turn_id = new_id("turn")
    with pytest.raises(Unavailable, match="`turnwire status` shows what runs") as cut:
        await _hit(slow, "agent", step, turn_id=turn_id)
    assert "agent" == cut.value.metadata["service"]
    await slow.start("agent")
    await until_up(slow.client, "agent")

    turn = await _check(slow, [event async for event in slow.client.watch_turn(turn_id)])
    assert (turn_pb2.TURN_STATUS_COMPLETED, 1, []) == (turn.status, turn.recoveries, _failures(turn))
    assert ("A slow-answer." if step == "output" else ANSWER) == _text(turn)
    results = [each.result.content for at in turn.steps for each in at.tool_execution.executions]
    assert (["begun\n42"] if step == "tool" else []) == results
    await _the_next_turn_works(slow)


@pytest.mark.parametrize("step", EACH_STEP)
async def test_a_reader_at_a_gateway_that_is_killed_is_cut_and_resumes_at_the_next_one(slow: SlowMesh, step: str):
    turn_id = new_id("turn")
    call, _ = await _accepted(slow, f"slow {step}: harpoon", turn_id)
    call.cancel()
    events: list[event_pb2.StepEvent] = []
    with contextlib.suppress(aiohttp.ClientError):  # how a connection ends whose other side is gone
        async for event in _served(slow, turn_id, 0):
            events.append(event)
            if _is_at(event, step):
                await _is_under_way(slow, step)
                await slow.kill("gateway")
    assert events
    assert events[-1].WhichOneof("payload") not in TERMINAL_PAYLOADS
    await slow.start("gateway")

    events += [event async for event in _served(slow, turn_id, events[-1].sequence)]
    turn = await _check(slow, events)
    assert (turn_pb2.TURN_STATUS_COMPLETED, 0, []) == (turn.status, turn.recoveries, _failures(turn))
    await _the_next_turn_works(slow)


async def _served(slow: SlowMesh, turn_id: str, after: int) -> AsyncIterator[event_pb2.StepEvent]:
    """Gives the events of a turn as the gateway sends them."""
    headers = {"last-event-id": str(after)}
    address = f"{slow.url}/v1/turns/{turn_id}/events"
    async with slow.http.get(address, headers=headers, timeout=aiohttp.ClientTimeout(PATIENCE)) as response:
        assert 200 == response.status
        async for line in response.content:
            if line.startswith(b"data: "):
                yield json_format.Parse(line.removeprefix(b"data: "), event_pb2.StepEvent())
