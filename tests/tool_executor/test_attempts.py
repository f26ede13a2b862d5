"""A tool that fails in passing is asked again, where that does no harm; each further time is told."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.fakes.images_server import FakeImages, fake_images
from tests.fakes.search_servers import fake_search
from tests.mesh.asking import check_log, events_of, folded, session_of
from tests.tool_executor.calling import FAILED, SUCCEEDED, drawing, executor_of, searching
from turnwire.agent.v1 import agent_pb2, turn_pb2
from turnwire.common.v1 import error_pb2
from turnwire.testing.mesh import running_mesh
from turnwire.tool_executor.v1 import tool_executor_service_pb2

if TYPE_CHECKING:
    from tests.tool_executor.calling import Executor
    from turnwire.common.v1 import message_pb2

pytestmark = pytest.mark.mesh
QUERY = {"query": "turnwire"}
PROMPT = {"prompt": "red"}


async def _asked(executor: Executor, tool: str, arguments: object) -> tuple[list[int], message_pb2.ToolResult]:
    """Executes a call; the numbers of the attempts that were told, and its result."""
    attempts: list[int] = []
    async for response in executor.stream(tool, arguments, "call_1"):
        if response.progress.unit == "attempts":
            assert 3 == response.progress.total
            attempts.append(response.progress.done)
        if response.HasField("result"):
            return attempts, response.result
    raise AssertionError("the stream ended without a result")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("passing", ["503", "429", "504"])
async def test_a_search_that_failed_in_passing_is_made_again(passing: str):
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = [passing]
        attempts, result = await _asked(executor, "web_search", QUERY)
        noted = await executor.execution()

    assert ([2], SUCCEEDED) == (attempts, noted.state)
    assert "Zweite" in result.content
    assert 2 == len(fake.requests)


@pytest.mark.usefixtures("at_once")
async def test_a_search_is_made_three_times_and_not_for_ever():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["503"] * 9
        attempts, result = await _asked(executor, "web_search", QUERY)

    assert [2, 3] == attempts
    assert error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE == result.failure.reason
    assert result.failure.retryable
    assert 3 == len(fake.requests)


@pytest.mark.usefixtures("at_once")
async def test_what_does_not_pass_is_not_tried_again():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["400"]
        attempts, result = await _asked(executor, "web_search", QUERY)

    assert ([], error_pb2.ERROR_REASON_PROVIDER_ERROR) == (attempts, result.failure.reason)
    assert 1 == len(fake.requests)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("behaviour", ["503", "cut"])
async def test_a_picture_that_was_asked_for_is_not_asked_for_again(behaviour: str):
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        fake.script = [behaviour]
        attempts, _ = await _asked(executor, "photogen", PROMPT)

    assert ([], 1) == (attempts, len(fake.requests))


@pytest.mark.usefixtures("at_once")
async def test_a_picture_that_could_not_be_asked_for_is_tried_again_since_nothing_was_sent():
    # A port that nobody else can have meanwhile, and at which nobody listens.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        provider = drawing(FakeImages(), base_url=f"http://127.0.0.1:{held.getsockname()[1]}/v1")
        async with executor_of(provider) as executor:
            attempts, result = await _asked(executor, "photogen", PROMPT)
            noted = await executor.execution()

    assert ([2, 3], FAILED) == (attempts, noted.state)
    assert error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE == result.failure.reason


async def test_there_is_no_further_attempt_that_would_end_after_the_limit():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["429"]  # which asks for 7 seconds
        limits = tool_executor_service_pb2.ExecutionLimits(total=Duration(seconds=5))
        ran = await executor.run("web_search", QUERY, limits=limits)

    assert error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED == ran.reason
    assert 1 == len(fake.requests)


@pytest.mark.usefixtures("at_once")
async def test_a_further_attempt_is_an_event_of_the_turn():
    rules = [
        {"after_tool": True, "text": "It is done."},
        {"contains": "search", "calls": [{"name": "web_search", "arguments": QUERY}]},
    ]
    scripted = {"provider_id": "scripted", "provider_type": "inline::scripted", "config": {"rules": rules}}
    async with (
        fake_search() as fake,
        running_mesh(
            services=("inference", "tool_executor", "agent"),
            providers={"inference": [scripted], "tool_executor": [searching(fake)]},
        ) as mesh,
        mesh.client() as client,
    ):
        fake.script = ["503"]
        tool = agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id="web_search"))
        events = await events_of(client, await session_of(client, tools=[tool]), "search")

    check_log(events)
    assert turn_pb2.TURN_STATUS_COMPLETED == folded(events).status
    told = [event.step_progress for event in events if event.HasField("step_progress")]
    assert [(2, 3, "attempts")] == [(each.done, each.total, each.unit) for each in told]


async def test_a_server_that_cannot_be_reached_in_time_passes_the_limit_for_connecting():
    # One that takes no connection: its queue is full.
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        host, port = listening.getsockname()
        for filling in (first, second):
            filling.setblocking(False)
            filling.connect_ex((host, port))
        async with executor_of(drawing(FakeImages(), base_url=f"http://{host}:{port}/v1")) as executor:
            limits = tool_executor_service_pb2.ExecutionLimits(connect=Duration(nanos=200_000_000))
            ran = await executor.run("photogen", PROMPT, limits=limits)
            noted = await executor.execution()

    assert (error_pb2.ERROR_REASON_DEADLINE_EXCEEDED, FAILED) == (ran.reason, noted.state)
    assert "connect" == ran.result.failure.metadata["limit"]


async def test_a_server_that_falls_silent_passes_the_limit_of_silence():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["half"]
        limits = tool_executor_service_pb2.ExecutionLimits(silence=Duration(nanos=200_000_000))
        ran = await executor.run("web_search", QUERY, limits=limits)

    assert error_pb2.ERROR_REASON_DEADLINE_EXCEEDED == ran.reason
    assert "silence" == ran.result.failure.metadata["limit"]
    assert "it was silent for 0.2 s" in ran.result.failure.message


async def test_a_server_that_has_begun_to_answer_keeps_the_limit_of_the_first_byte():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["half"]
        limits = tool_executor_service_pb2.ExecutionLimits(first_byte=Duration(seconds=1))
        running = asyncio.create_task(executor.run("web_search", QUERY, limits=limits))
        await fake.asked.wait()
        await asyncio.sleep(1.5)  # longer than that limit
        fake.gate.set()
        ran = await running

    assert "Zweite" in ran.result.content
