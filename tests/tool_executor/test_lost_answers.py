"""A tool was asked and its answer never came: what it did is not known, unless doing it twice does no harm."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.fakes.images_server import FakeImages, fake_images
from tests.fakes.search_servers import fake_search
from tests.tool_executor.calling import FAILED, UNKNOWN, drawing, executor_of, searching
from turnwire.common.v1 import error_pb2
from turnwire.errors import StoreUnavailable
from turnwire.tool_executor import attempts, patience
from turnwire.tool_executor.artifacts import Artifacts
from turnwire.tool_executor.running import Running
from turnwire.tool_executor.tools.openai_images import OpenAiImagesProvider
from turnwire.tool_executor.v1 import tool_executor_service_pb2

pytestmark = [pytest.mark.mesh, pytest.mark.usefixtures("at_once")]
PROMPT = {"prompt": "red"}
LIMITS = [
    tool_executor_service_pb2.ExecutionLimits(first_byte=Duration(nanos=200_000_000)),
    tool_executor_service_pb2.ExecutionLimits(total=Duration(nanos=200_000_000)),
]


@pytest.mark.parametrize("behaviour", ["cut", "502", "504"])
async def test_a_picture_whose_answer_was_lost_on_the_way_may_have_been_made(behaviour: str):
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        fake.script = [behaviour]
        ran = await executor.run("photogen", PROMPT)
        noted = await executor.execution()

    assert (UNKNOWN, error_pb2.ERROR_REASON_OUTCOME_UNKNOWN) == (noted.state, ran.reason)
    assert "look at what it may have done" in ran.result.failure.message
    assert not ran.result.failure.retryable
    assert 1 == len(fake.requests)


@pytest.mark.parametrize("limits", LIMITS, ids=["first_byte", "total"])
async def test_a_picture_that_was_not_waited_for_may_have_been_made(
    limits: tool_executor_service_pb2.ExecutionLimits,
):
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        fake.script = ["make and hang"]
        ran = await executor.run("photogen", PROMPT, limits=limits)
        noted = await executor.execution()

    assert (UNKNOWN, error_pb2.ERROR_REASON_OUTCOME_UNKNOWN) == (noted.state, ran.reason)
    assert "0.2 s" in ran.result.failure.message


async def test_a_call_that_is_cancelled_while_its_limit_ends_it_has_the_outcome_of_that(
    monkeypatch: pytest.MonkeyPatch,
):
    ending, go_on = asyncio.Event(), asyncio.Event()

    async def has_ended(*_: object) -> bool:
        ending.set()
        await go_on.wait()
        return False

    monkeypatch.setattr(OpenAiImagesProvider, "has_ended", has_ended)
    stop, stopped = Running.stop, asyncio.Event()

    def noting(running: Running) -> None:
        stop(running)
        stopped.set()

    monkeypatch.setattr(Running, "stop", noting)
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        fake.script = ["make and hang"]
        asking = asyncio.create_task(executor.run("photogen", PROMPT, limits=LIMITS[0]))
        await ending.wait()
        cancelling = asyncio.create_task(executor.cancel())
        await stopped.wait()
        go_on.set()
        ran, noted = await asyncio.gather(asking, cancelling)

    assert (UNKNOWN, ran.result) == (noted.state, noted.result)
    assert "it gave nothing within 0.2 s" in ran.result.failure.message


async def test_what_its_maker_refuses_has_failed():
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        fake.script = ["503"]
        ran = await executor.run("photogen", PROMPT)
        noted = await executor.execution()

    assert (FAILED, error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE) == (noted.state, ran.reason)


async def test_what_nobody_was_there_to_take_has_failed():
    # A port that nobody else can have meanwhile, and at which nobody listens.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        provider = drawing(FakeImages(), base_url=f"http://127.0.0.1:{held.getsockname()[1]}/v1")
        async with executor_of(provider) as executor:
            ran = await executor.run("photogen", PROMPT)
            noted = await executor.execution()

    assert (FAILED, error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE) == (noted.state, ran.reason)


async def test_a_search_whose_answer_was_lost_has_failed():
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = ["504"] * attempts.MAX_ATTEMPTS
        ran = await executor.run("web_search", {"query": "turnwire"})
        noted = await executor.execution()

    assert (FAILED, error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE) == (noted.state, ran.reason)
    assert ran.result.failure.retryable


def _keeping_fails(monkeypatch: pytest.MonkeyPatch, *failures: Exception) -> None:
    """Has files not be kept, once for each failure."""
    keep, left = Artifacts.keep, list(failures)

    async def failing(*given: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return await keep(*given, **named)

    monkeypatch.setattr(Artifacts, "keep", failing)


async def test_a_picture_is_offered_again_to_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch):
    away = StoreUnavailable("tool_executor", "the disk is full")
    _keeping_fails(monkeypatch, away, away)
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        ran = await executor.run("photogen", PROMPT)

    assert not ran.result.HasField("failure")
    assert (["call_1"], 1) == (fake.effects, len(ran.result.attachments))


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (StoreUnavailable("tool_executor", "the disk is full"), "what it gave could not be kept"),
        (RuntimeError("a defect"), "a defect of Turnwire"),
    ],
    ids=["store", "defect"],
)
async def test_a_picture_that_was_made_and_could_not_be_kept_has_not_failed(
    failure: Exception, words: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(patience, "_SECONDS", -1.0)
    _keeping_fails(monkeypatch, failure)
    async with fake_images() as fake, executor_of(drawing(fake)) as executor:
        ran = await executor.run("photogen", PROMPT)
        noted = await executor.execution()

    assert (UNKNOWN, error_pb2.ERROR_REASON_OUTCOME_UNKNOWN) == (noted.state, ran.reason)
    assert words in ran.result.failure.message
    assert ["call_1"] == fake.effects
