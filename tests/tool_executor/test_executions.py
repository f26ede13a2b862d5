"""The journal of effects: one execution a call, however many ask, attach, cancel, or come too late."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.fakes.images_server import fake_images
from tests.fakes.search_servers import fake_search
from tests.tool_executor.calling import (
    CANCELLED,
    DISPATCHED,
    FAILED,
    KEYS,
    PREPARED,
    SUCCEEDED,
    TWO_TENANTS,
    UNKNOWN,
    calling,
    drawing,
    executor_of,
    searching,
    until,
)
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import (
    ExecutionNotInDoubt,
    IdempotencyConflict,
    InvalidArgument,
    NotFound,
    NotOwner,
    PermissionDenied,
    ResourceInUse,
    StoreUnavailable,
)
from turnwire.runtime.identity import mesh_token
from turnwire.testing.mesh import running_mesh
from turnwire.tool_executor.journal import Journal
from turnwire.tool_executor.running import Running
from turnwire.tool_executor.v1 import tool_executor_service_pb2

if TYPE_CHECKING:
    from tests.fakes.images_server import FakeImages
    from tests.tool_executor.calling import Executor

pytestmark = pytest.mark.mesh
QUERY = {"query": "turnwire"}
SKIP = tool_executor_service_pb2.RESOLUTION_SKIP
PROVIDE = tool_executor_service_pb2.RESOLUTION_PROVIDE


async def test_a_call_runs_once_and_its_outcome_is_given_again():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        first = await executor.run("web_search", QUERY)
        second = await executor.run("web_search", QUERY)
        noted = await executor.execution()

    assert [PREPARED, DISPATCHED] == first.states
    assert [SUCCEEDED] == second.states
    assert first.result == second.result == noted.result
    assert "Zweite Seite" in first.result.content
    assert 1 == len(fake.requests)
    assert SUCCEEDED == noted.state
    assert noted.prepare_time.ToMicroseconds() <= noted.dispatch_time.ToMicroseconds()
    assert noted.dispatch_time.ToMicroseconds() <= noted.end_time.ToMicroseconds()


async def test_parallel_calls_overlap():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["hang"] * 5
        running = [asyncio.create_task(executor.run("web_search", QUERY, f"call_{n}")) for n in range(5)]
        await until(lambda: _true(fake.open == 5))
        fake.gate.set()
        await asyncio.gather(*running)

    assert 5 == fake.most_at_once


async def test_many_who_ask_for_one_call_attach_to_one_execution():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["hang"]
        asking = [asyncio.create_task(executor.run("web_search", QUERY)) for _ in range(20)]
        await fake.asked.wait()
        asking += [asyncio.create_task(executor.run("web_search", QUERY)) for _ in range(20)]
        fake.gate.set()
        ran = await asyncio.gather(*asking)

    assert 1 == len(fake.requests)
    assert 1 == len({each.result.SerializeToString(deterministic=True) for each in ran})


async def test_a_caller_that_goes_away_stops_nothing():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["hang"]
        stream = executor.stream("web_search", QUERY, "call_1")
        await fake.asked.wait()
        stream.cancel()
        assert DISPATCHED == (await executor.execution()).state
        fake.gate.set()
        await until(lambda: _in_state(executor, SUCCEEDED))

    assert 1 == len(fake.requests)


async def test_the_deadline_of_a_caller_is_none_of_the_execution():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["hang"]
        patience = 0.3
        while not fake.asked.is_set():  # before it was sent, there is no execution that could go on
            with pytest.raises(grpc.RpcError) as raised:
                async for _ in executor.executor.ExecuteTool(_request("call_1"), timeout=patience):
                    pass
            assert grpc.StatusCode.DEADLINE_EXCEEDED == raised.value.code()
            patience *= 2
        assert DISPATCHED == (await executor.execution()).state
        fake.gate.set()
        assert "Zweite" in (await executor.run("web_search", QUERY)).result.content


@pytest.mark.parametrize(
    "other",
    [{"arguments": {"query": "else"}}, {"session_id": "sess_2"}, {"tool": "brave_search"}, {"retry_of": "call_0"}],
    ids=str,
)
async def test_one_call_id_with_something_else_is_a_conflict(other: dict[str, Any]):
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        await executor.run("web_search", QUERY)
        asked: dict[str, Any] = {"tool": "web_search", "arguments": QUERY} | other
        with pytest.raises(IdempotencyConflict) as raised:
            await executor.run(asked.pop("tool"), asked.pop("arguments"), **asked)

    assert {"call_id": "call_1"} == raised.value.metadata
    assert 1 == len(fake.requests)


async def test_arguments_that_do_not_fit_are_told_and_nothing_is_sent():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        ran = [
            await executor.run("web_search", arguments, f"call_{number}")
            for number, arguments in enumerate([{}, {"query": 3}, {"query": "x", "more": 1}, "[1]", "{", "[" * 100_000])
        ]
        again = await executor.run("web_search", {}, "call_0")
        noted = await executor.execution("call_0")

    assert {error_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS} == {each.reason for each in ran}
    assert "'query' is a required property" in ran[0].result.failure.message
    assert "$.query" == ran[1].result.failure.metadata["path"]
    assert "brave_search" not in ran[0].result.name
    assert ran[0].result == again.result
    assert (FAILED, False) == (noted.state, noted.HasField("dispatch_time"))
    assert [] == fake.requests


def _fails_once(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Has the next use of a method of the journal meet a full disk."""
    works = getattr(Journal, method)
    failures = [StoreUnavailable("tool_executor", "the disk is full")]

    async def failing(*given: Any) -> Any:
        if failures:
            raise failures.pop()
        return await works(*given)

    monkeypatch.setattr(Journal, method, failing)


async def test_arguments_are_refused_again_when_their_refusal_was_not_written_down(monkeypatch: pytest.MonkeyPatch):
    _fails_once(monkeypatch, "ended")
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        with pytest.raises(StoreUnavailable):
            await executor.run("photogen", {"prompt": 3})
        assert PREPARED == (await executor.execution()).state
        ran = await executor.run("photogen", {"prompt": 3})

    assert error_pb2.ERROR_REASON_INVALID_TOOL_ARGUMENTS == ran.reason
    assert [] == fake.requests


async def test_a_call_that_could_not_be_noted_as_sent_runs_when_it_is_asked_for_again(monkeypatch: pytest.MonkeyPatch):
    _fails_once(monkeypatch, "dispatched")
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        with pytest.raises(StoreUnavailable):
            await executor.run("photogen", {"prompt": "red"})
        assert PREPARED == (await executor.execution()).state
        assert [] == fake.requests
        ran = await executor.run("photogen", {"prompt": "red"})

    assert not ran.result.HasField("failure")
    assert ["call_1"] == fake.effects


async def test_an_owner_that_is_none_any_more_is_refused():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        await executor.run("web_search", QUERY, owner_epoch=3)
        for call_id in ("call_1", "call_2"):
            with pytest.raises(NotOwner):
                await executor.run("web_search", QUERY, call_id, owner_epoch=2)
        with pytest.raises(NotOwner):
            await executor.cancel(epoch=2)
        await executor.run("web_search", QUERY, owner_epoch=4)
        with pytest.raises(NotOwner):
            await executor.run("web_search", QUERY, owner_epoch=3)
        await executor.run("web_search", QUERY, "call_3", turn_id="turn_2", owner_epoch=1)
        assert 4 == (await executor.execution()).owner_epoch

    assert 2 == len(fake.requests)


async def test_a_call_is_cancelled_and_its_request_is_gone():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["hang"]
        running = asyncio.create_task(executor.run("web_search", QUERY))
        await fake.asked.wait()
        stopped = await executor.cancel()
        ran = await running
        again = await executor.run("web_search", QUERY)

    assert CANCELLED == stopped.state
    assert error_pb2.ERROR_REASON_CANCELLED == ran.reason
    assert stopped.result == ran.result == again.result
    assert 1 == len(fake.requests)


async def test_what_was_sent_and_cannot_be_stopped_is_unknown_when_it_is_cancelled():
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        fake.script = ["hang"]
        running = asyncio.create_task(executor.run("photogen", {"prompt": "red"}))
        await fake.asked.wait()
        stopped = await executor.cancel()
        ran = await running

    assert UNKNOWN == stopped.state
    assert error_pb2.ERROR_REASON_OUTCOME_UNKNOWN == ran.reason


async def test_a_call_that_is_cancelled_before_it_comes_never_runs():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        stopped = await executor.cancel(epoch=1)
        ran = await executor.run("web_search", QUERY)
        with pytest.raises(NotFound):
            await executor.cancel("call_2", epoch=0, turn_id="turn_2")
        with pytest.raises(NotFound):
            await executor.execution("call_2", "turn_2")

    assert CANCELLED == stopped.state
    assert ([CANCELLED], error_pb2.ERROR_REASON_CANCELLED) == (ran.states, ran.reason)
    assert [] == fake.requests


async def test_cancelling_what_has_ended_gives_its_outcome():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        ran = await executor.run("web_search", QUERY)
        stopped = await executor.cancel()

    assert (SUCCEEDED, ran.result) == (stopped.state, stopped.result)


async def test_cancelling_and_asking_at_once_ends_in_one_outcome():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        for number in range(30):
            call_id = f"call_{number}"
            ran, stopped = await asyncio.gather(executor.run("web_search", QUERY, call_id), executor.cancel(call_id))
            assert ran.result == stopped.result
            assert stopped.state in {SUCCEEDED, CANCELLED}


async def test_an_execution_is_not_cut_before_its_first_step_nor_after_its_outcome():
    running = Running(("default", "turn_1", "call_1"))
    running.task = task = asyncio.create_task(asyncio.sleep(3600))
    running.stop()
    assert (True, 0) == (running.stopping, task.cancelling())
    running.begun = running.settled = True
    running.stop()
    assert 0 == task.cancelling()
    running.settled = False
    running.stop()
    assert 1 == task.cancelling()
    running.taken_back()
    running.stop()
    assert 0 == task.cancelling(), "it was cut again while it wrote down what became of it"
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("room", [0, 1])
async def test_readers_are_told_that_more_was_written_than_is_kept_for_them(room: int):
    running = Running(("default", "turn_1", "call_1"))
    shown = "x" * (4 * 1024 * 1024 - room)
    running.write(shown)
    assert shown == running.output
    running.write("é")
    running.write("more")
    running.finish(message_pb2.ToolResult(content="all"))

    text = "".join([response.output.text async for response in running.read()])
    assert shown + "\n[More was written; it is not shown here.]\n" == text


@pytest.mark.parametrize("limit", ["first_byte", "total"])
async def test_a_limit_ends_an_execution(limit: str):
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["hang"]
        limits = tool_executor_service_pb2.ExecutionLimits(**{limit: Duration(nanos=200_000_000)})
        ran = await executor.run("web_search", QUERY, limits=limits)
        noted = await executor.execution()

    assert (error_pb2.ERROR_REASON_DEADLINE_EXCEEDED, FAILED) == (ran.reason, noted.state)
    assert limit == ran.result.failure.metadata["limit"]
    assert "0.2 s" in ran.result.failure.message


async def test_a_tool_that_fails_says_why_in_its_result():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["400"]
        ran = await executor.run("web_search", QUERY)
        noted = await executor.execution()

    assert (error_pb2.ERROR_REASON_PROVIDER_ERROR, FAILED) == (ran.reason, noted.state)
    assert not ran.result.failure.retryable
    assert ("web_search", "call_1") == tuple(ran.result.failure.metadata[key] for key in ("tool", "call_id"))


async def test_tools_of_the_llama_family_are_found_by_their_name():
    async with fake_search() as fake, executor_of(searching(fake, "brave")) as executor:
        ran = await executor.run("brave_search", QUERY)
        noted = await executor.execution()

    assert "Zweite" in ran.result.content
    assert "web_search" == noted.tool_id


async def test_what_a_tool_does_not_take_is_refused():
    async with fake_search() as fake, executor_of(searching(fake), searching(fake, "searxng")) as executor:
        attachment = message_pb2.Attachment(text="x", name="x")
        with pytest.raises(InvalidArgument) as files:
            await executor.run("tavily/web_search", QUERY, attachments=[attachment])
        with pytest.raises(InvalidArgument) as credential:
            await executor.run("searxng/web_search", QUERY, authorization="secret")
        with pytest.raises(NotFound):
            await executor.run("nothing", {})

    assert ["attachments"] == [each.field for each in files.value.violations]
    assert ["authorization"] == [each.field for each in credential.value.violations]
    assert [] == fake.requests


async def test_a_lost_outcome_is_given_by_a_decision_and_by_no_second_one():
    given = message_pb2.ToolResult(content="It hangs in the hall.")
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        await _lost(fake, executor)
        decided = await executor.resolve(PROVIDE, result=given)
        again = await executor.resolve(PROVIDE, result=given)
        asked = await executor.run("photogen", {"prompt": "red"})
        with pytest.raises(ExecutionNotInDoubt):
            await executor.resolve(SKIP)
        with pytest.raises(ExecutionNotInDoubt):
            await executor.resolve(PROVIDE, result=message_pb2.ToolResult(content="No."))

    assert SUCCEEDED == decided.state
    assert decided == again
    assert ([SUCCEEDED], "It hangs in the hall.", "photogen") == (
        asked.states,
        asked.result.content,
        asked.result.name,
    )
    assert 1 == len(fake.requests)


async def test_a_lost_outcome_that_was_skipped_stays_unknown():
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        await _lost(fake, executor)
        assert UNKNOWN == (await executor.resolve(SKIP)).state
        assert UNKNOWN == (await executor.resolve(SKIP)).state
        with pytest.raises(ExecutionNotInDoubt):
            await executor.resolve(PROVIDE, result=message_pb2.ToolResult(content="Too late."))


async def test_there_is_nothing_to_decide_about_what_has_an_outcome_or_is_not_there():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        await executor.run("web_search", QUERY)
        with pytest.raises(ExecutionNotInDoubt):
            await executor.resolve(SKIP)
        with pytest.raises(NotFound):
            await executor.resolve(SKIP, "call_2")
        for more in ({"resolution": SKIP, "result": message_pb2.ToolResult()}, {"resolution": PROVIDE}, {}):
            with pytest.raises(InvalidArgument):
                await executor.resolve(**{"resolution": 0} | more)  # pyright: ignore[reportArgumentType] - as a caller may err


async def test_a_call_is_not_repeated_while_it_runs():
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        fake.script = ["hang"]
        running = asyncio.create_task(executor.run("photogen", {"prompt": "red"}))
        await fake.asked.wait()
        with pytest.raises(ResourceInUse):
            await executor.run("photogen", {"prompt": "red"}, "call_2", retry_of="call_1")
        fake.gate.set()
        await running

    assert 1 == len(fake.requests)


async def test_only_the_mesh_says_which_owner_of_a_turn_it_is():
    async with (
        fake_search() as fake,
        running_mesh(
            services=("tool_executor",), providers={"tool_executor": [searching(fake)]}, access=TWO_TENANTS
        ) as mesh,
        calling(mesh, KEYS["alice"]) as alice,
        calling(mesh, mesh_token(TWO_TENANTS["mesh_secret"], "agent")) as agent,
    ):
        with pytest.raises(PermissionDenied, match="owner_epoch"):
            await alice.run("web_search", QUERY, owner_epoch=9)
        with pytest.raises(PermissionDenied, match="owner_epoch"):
            await alice.cancel(epoch=9)
        ran = await agent.run("web_search", QUERY, owner_epoch=1)

    assert not ran.result.HasField("failure")


async def _lost(fake: FakeImages, executor: Executor) -> None:
    """A picture is asked for, and the call is stopped when it is on its way."""
    fake.script = ["hang"]
    running = asyncio.create_task(executor.run("photogen", {"prompt": "red"}))
    await fake.asked.wait()
    assert UNKNOWN == (await executor.cancel()).state
    await running


async def test_calls_of_another_tenant_are_not_there():
    async with (
        fake_search() as fake,
        running_mesh(
            services=("tool_executor",), providers={"tool_executor": [searching(fake)]}, access=TWO_TENANTS
        ) as mesh,
        calling(mesh, KEYS["alice"]) as alice,
        calling(mesh, KEYS["bob"]) as bob,
    ):
        await alice.run("web_search", QUERY)
        with pytest.raises(NotFound):
            await bob.execution()
        with pytest.raises(NotFound):
            await bob.cancel(epoch=0)
        # The same ids are another call there.
        other = await bob.run("web_search", {"query": "nothing"})

    assert '"results": []' in other.result.content
    assert 2 == len(fake.requests)


async def _true(value: bool) -> bool:
    return value


async def _in_state(executor: Executor, state: int) -> bool:
    return (await executor.execution()).state == state


def _request(call_id: str) -> tool_executor_service_pb2.ExecuteToolRequest:
    call = message_pb2.ToolCall(call_id=call_id, name="web_search", arguments_json='{"query": "turnwire"}')
    return tool_executor_service_pb2.ExecuteToolRequest(call=call, turn_id="turn_1", session_id="sess_1", owner_epoch=1)
