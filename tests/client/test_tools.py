"""The caller's functions: run at once, failing without harm, answered through restarts."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.client.proxy import proxied
from tests.mesh.asking import session_of, weather_tool
from turnwire.agent.v1 import step_pb2, turn_pb2
from turnwire.client.caller_tools import MAX_RESULT_BYTES
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _calls(*names: str) -> dict[str, Any]:
    calls = [{"name": name, "arguments": {"city": f"city {index}"}} for index, name in enumerate(names)]
    return {"contains": "weather", "calls": calls, "after_tool": False}


AFTER = {"after_tool": True, "text": "It is sunny."}
ONE = [_calls("get_weather"), AFTER]


def _executions(turn: turn_pb2.Turn) -> Sequence[step_pb2.ToolExecution]:
    (step,) = [step for step in turn.steps if step.HasField("tool_execution")]
    return step.tool_execution.executions


async def _result_of(function: Callable[..., Any]) -> message_pb2.ToolResult:
    """Runs a turn that calls a function once, and returns what the model was given."""
    async with running_mesh(rules=ONE) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        turn = await client.run_turn(session, "the weather?", tools={"get_weather": function}).result()
        assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
        assert turn == await client.get_turn(turn.turn_id)
        assert "It is sunny." == turn.output.parts[0].text
        (execution,) = _executions(turn)
        return execution.result


@dataclass
class Weather:
    city: str
    degrees: int


class AsyncCallable:
    async def __call__(self, city: str) -> Weather:
        return Weather(city, 21)


async def _coroutine(city: str) -> dict[str, Any]:
    return {"city": city, "degrees": 21}


def _message(city: str) -> message_pb2.ToolResult:
    return message_pb2.ToolResult(content=f"sunny in {city}")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda city: f"sunny in {city}", "sunny in city 0"),
        (_coroutine, '{"city":"city 0","degrees":21}'),
        (lambda city: Weather(city, 21), '{"city":"city 0","degrees":21}'),
        (AsyncCallable(), '{"city":"city 0","degrees":21}'),
        (lambda city: _coroutine(city), '{"city":"city 0","degrees":21}'),
        (_message, "sunny in city 0"),
        (lambda city: None, "null"),
    ],
    ids=["plain", "coroutine", "dataclass", "async callable", "returns a coroutine", "message", "nothing"],
)
async def test_a_function_of_any_kind_answers(function: Callable[..., Any], expected: str):
    result = await _result_of(function)
    assert (expected, "get_weather") == (result.content, result.name)
    assert not result.HasField("failure")
    assert result.duration.ToNanoseconds() > 0


def _raises(city: str) -> str:
    raise LookupError(f"no station in {city}")


async def _lets_a_cancellation_out(city: str) -> str:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (_raises, "LookupError: no station in city 0"),
        (lambda: "no arguments", "TypeError"),
        (lambda city: threading.Lock(), "PydanticSerializationError"),
        (_lets_a_cancellation_out, "was cancelled"),
        (lambda city: "x" * (MAX_RESULT_BYTES + 1), f"{MAX_RESULT_BYTES + 1} bytes"),
    ],
    ids=["raises", "other arguments", "no JSON", "cancels itself", "too long"],
)
async def test_a_function_that_fails_is_told_to_the_model_and_the_turn_goes_on(function: Callable[..., Any], said: str):
    result = await _result_of(function)
    assert error_pb2.ERROR_REASON_TOOL_FAILED == result.failure.reason
    assert said in result.failure.message
    assert "get_weather" == result.failure.metadata["tool"]


async def test_all_calls_of_a_pause_run_at_once_plain_functions_too():
    together = threading.Barrier(2, timeout=20)
    meeting = asyncio.Barrier(2)

    def plain(city: str) -> str:
        together.wait()  # held up for ever, were the other not run beside it
        return city

    async def coroutine(city: str) -> str:
        await meeting.wait()
        return city

    rules = [_calls("plain", "plain", "coroutine", "coroutine"), AFTER]
    async with running_mesh(rules=rules) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool("plain"), weather_tool("coroutine")])
        stream = client.run_turn(session, "the weather?", tools={"plain": plain, "coroutine": coroutine})
        turn = await stream.result()

        assert [f"city {index}" for index in range(4)] == [each.result.content for each in _executions(turn)]


async def test_large_results_are_submitted_in_several_requests():
    def large(city: str) -> str:
        return city.ljust(MAX_RESULT_BYTES, "x")

    async with running_mesh(rules=[_calls(*["get_weather"] * 3), AFTER]) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        turn = await client.run_turn(session, "the weather?", tools={"get_weather": large}).result()

        assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
        assert [MAX_RESULT_BYTES] * 3 == [len(each.result.content) for each in _executions(turn)]


async def test_a_pause_with_a_call_of_something_else_is_left_to_the_caller_as_a_whole():
    ran: list[str] = []
    rules = [_calls("get_weather", "ask_boss"), AFTER]
    async with running_mesh(rules=rules) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool(), weather_tool("ask_boss")])
        stream = client.run_turn(session, "the weather?", tools={"get_weather": ran.append})
        turn = await stream.result()
        assert turn_pb2.TURN_STATUS_AWAITING_INPUT == turn.status
        calls = [request.call for request in turn.awaited_input.requests]
        assert ["get_weather", "ask_boss"] == [call.name for call in calls]
        assert [] == ran

        # A program that has both functions takes the turn over.
        taken = client.watch_turn(stream.turn_id, tools={"get_weather": _city, "ask_boss": _city})
        assert "It is sunny." == (await taken.result()).output.parts[0].text


def _city(city: str) -> str:
    return city


async def test_a_program_that_comes_back_in_the_middle_answers_what_is_open():
    async with running_mesh(rules=ONE) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        paused = client.run_turn(session, "the weather?")
        await paused.result()

        back = client.watch_turn(paused.turn_id, after_sequence=paused.last_sequence, tools={"get_weather": _city})
        turn = await back.result()
        assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
        assert "city 0" == _executions(turn)[0].result.content


async def test_functions_answer_where_pauses_are_followed_and_only_open_ones():
    ran: list[str] = []

    def get_weather(city: str) -> str:
        ran.append(city)
        return city

    async with running_mesh(rules=ONE) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        stream = client.run_turn(session, "the weather?", tools={"get_weather": get_weather}, follow_pauses=True)
        assert turn_pb2.TURN_STATUS_COMPLETED == (await stream.result()).status
        again = client.watch_turn(stream.turn_id, tools={"get_weather": get_weather}, follow_pauses=True)
        assert turn_pb2.TURN_STATUS_COMPLETED == (await again.result()).status
        assert ["city 0"] == ran


async def test_a_pause_that_is_followed_and_not_ours_is_waited_out():
    rules = [
        {"contains": "weather", "calls": [{"name": "ask_boss", "arguments": {"city": "a"}}], "after_tool": False},
        {"after_tool": True, "times": 1, "calls": [{"name": "get_weather", "arguments": {"city": "b"}}]},
        AFTER,
    ]
    async with running_mesh(rules=rules) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool(), weather_tool("ask_boss")])
        stream = client.run_turn(session, "the weather?", tools={"get_weather": _city}, follow_pauses=True)
        async with stream:
            async for event in stream:
                if event.WhichOneof("payload") == "turn_awaiting_input":
                    request = event.turn_awaiting_input.awaited_input.requests[0]
                    if request.call.name == "ask_boss":
                        answer = message_pb2.ToolResult(call_id=request.call.call_id, content="yes")
                        await client.submit_turn_input(stream.turn_id, [answer])
        assert turn_pb2.TURN_STATUS_COMPLETED == stream.turn.status
        results = [
            execution.result.content for step in stream.turn.steps for execution in step.tool_execution.executions
        ]
        assert ["yes", "b"] == results


async def test_what_a_function_returned_is_submitted_through_a_restart_of_the_agent():
    async with running_mesh(rules=ONE) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])
        restarting: list[asyncio.Task[None]] = []
        ran: list[str] = []

        async def get_weather(city: str) -> str:
            ran.append(city)
            await mesh.stop("agent")
            restarting.append(asyncio.create_task(mesh.start("agent")))
            return city

        stream = client.run_turn(session, "the weather?", tools={"get_weather": get_weather})
        turn = await stream.result()
        await asyncio.gather(*restarting)
        assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
        assert ["city 0"] == ran


async def test_an_answer_whose_reply_was_lost_is_given_again_and_taken_once():
    async with running_mesh(rules=ONE) as mesh, proxied(mesh.address("agent")) as proxy:
        async with mesh.client(address=proxy.address) as client, mesh.client() as beside:
            session = await session_of(client, tools=[weather_tool()])

            async def get_weather(city: str) -> str:
                proxy.delay = 3600  # requests go through, answers do not come back
                return city

            stream = client.run_turn(session, "the weather?", tools={"get_weather": get_weather})
            reading = asyncio.create_task(stream.result())
            async with beside.watch_turn(stream.turn_id, follow_pauses=True) as watched:
                await _known(beside, stream.turn_id)
                async for event in watched:
                    if event.WhichOneof("payload") == "turn_input_received":
                        proxy.delay = 0
                        proxy.cut()
            turn = await reading
            assert turn == await beside.get_turn(stream.turn_id)
            received = [
                event
                async for event in beside.watch_turn(stream.turn_id)
                if event.WhichOneof("payload") == "turn_input_received"
            ]
            assert 1 == len(received)


async def _known(client: Any, turn_id: str) -> None:
    from turnwire.errors import NotFound

    while True:
        try:
            await client.get_turn(turn_id)
        except NotFound:
            await asyncio.sleep(0.01)
        else:
            return


async def test_a_turn_that_ended_while_its_function_ran_is_shown_as_it_ended():
    async with running_mesh(rules=ONE) as mesh, mesh.client() as client:
        session = await session_of(client, tools=[weather_tool()])

        async def get_weather(city: str) -> str:
            await client.cancel_turn(stream.turn_id)
            return city

        stream = client.run_turn(session, "the weather?", tools={"get_weather": get_weather})
        turn = await stream.result()
        assert turn_pb2.TURN_STATUS_CANCELLED == turn.status
        assert turn == await client.get_turn(stream.turn_id)
