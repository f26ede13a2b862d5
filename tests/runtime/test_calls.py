"""What holds around every call: it is answered, in time, with a typed error, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2

from tests.runtime.serving import Answering, Hosted, details, failure, hosted, inference, stub_of, word
from turnwire.agent.v1 import agent_service_pb2, event_pb2
from turnwire.agent.v1.agent_service_pb2_grpc import (
    AgentServiceServicer,
    AgentServiceStub,
    add_AgentServiceServicer_to_server,
)
from turnwire.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    MalformedMessage,
    MessageTooLarge,
    Overloaded,
    Unavailable,
    Unimplemented,
    from_rpc_error,
)
from turnwire.inference.v1 import inference_service_pb2 as messages
from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from turnwire.runtime.channels import channel_options, upstream
from turnwire.runtime.identity import remaining

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from turnwire.runtime.directory import Directory

COUNT = messages.CountTokensRequest()
CHAT = messages.ChatCompletionRequest()
RUN = agent_service_pb2.RunTurnRequest()


def agent(servicer: Callable[[Directory], AgentServiceServicer]) -> Any:
    return lambda server, directory: add_AgentServiceServicer_to_server(servicer(directory), server)


class Hanging(Answering):
    """Says one word and then nothing; counts who is still there."""

    def __init__(self) -> None:
        self.open = 0
        self.changed = asyncio.Condition()

    async def ChatCompletion(self, request: Any, context: Any) -> AsyncGenerator[messages.ChatCompletionResponse, None]:
        await self._count(1)
        try:
            yield word("one")
            await asyncio.Event().wait()
        finally:
            self.open -= 1
            # A cancelled task may not wait for the lock.
            self._telling = asyncio.get_running_loop().create_task(self._count(0))

    async def until(self, number: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.open == number)

    async def _count(self, more: int) -> None:
        async with self.changed:
            self.open += more
            self.changed.notify_all()


async def test_more_than_a_thousand_calls_at_once_are_all_answered():
    async with hosted({"inference": inference()}) as service, stub_of(service.address()) as stub:

        async def one() -> str:
            return "".join([piece.text.text async for piece in stub.ChatCompletion(CHAT, timeout=60)])

        answers = await asyncio.gather(*(one() for _ in range(2_000)))
    assert ["hello"] * 2_000 == answers


async def test_more_than_the_limit_is_refused_with_when_to_come_back():
    servicer = Hanging()
    async with (
        hosted({"inference": inference(servicer)}, limits={"concurrent_calls": 3}) as service,
        stub_of(service.address()) as stub,
    ):
        calls = [stub.ChatCompletion(CHAT) for _ in range(3)]
        for call in calls:
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.CountTokens(COUNT)
        error = from_rpc_error(refused.value, service="inference")
        assert isinstance(error, Overloaded)
        assert "3" == error.metadata["limit"]
        assert 1.0 == error.retry_after
        assert error_details_pb2.RetryInfo in {type(detail) for detail in details(refused.value)}

        calls[0].cancel()
        await servicer.until(2)
        assert 1 == (await stub.CountTokens(COUNT)).prompt_tokens
        for call in calls:
            call.cancel()


@pytest.mark.parametrize("method", ["CountTokens", "ChatCompletion"])
async def test_a_cancelled_part_of_a_handler_gives_a_status_and_no_hang(method: str):
    class Losing(Answering):
        async def _lost(self) -> None:
            part = asyncio.ensure_future(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(part.cancel)
            await part

        async def CountTokens(self, request: Any, context: Any) -> messages.CountTokensResponse:
            await self._lost()
            raise AssertionError

        async def ChatCompletion(
            self, request: Any, context: Any
        ) -> AsyncGenerator[messages.ChatCompletionResponse, None]:
            yield word("one")
            await self._lost()

    async with hosted({"inference": inference(Losing())}) as service, stub_of(service.address()) as stub:

        async def called() -> None:
            if method == "CountTokens":
                await stub.CountTokens(COUNT, timeout=20)
            else:
                assert 1 == len([piece async for piece in stub.ChatCompletion(CHAT, timeout=20)])

        error = await failure(called())
    # Not DeadlineExceeded: the caller did not have to wait for it.
    assert isinstance(error, Cancelled)
    assert "was cancelled: retry" in error.message


async def test_a_defect_is_told_without_its_words_and_with_the_request_id():
    class Broken(Answering):
        async def CountTokens(self, request: Any, context: Any) -> messages.CountTokensResponse:
            raise KeyError("a secret of the server")

    async with hosted({"inference": inference(Broken())}) as service, stub_of(service.address()) as stub:
        error = await failure(stub.CountTokens(COUNT, metadata=(("turnwire-request-id", "req-of-mine"),)))
    assert isinstance(error, Internal)
    assert "req-of-mine" == error.metadata["request_id"]
    assert "secret" not in error.message


async def test_the_request_id_comes_back_in_the_trailers():
    async with hosted({"inference": inference()}) as service, stub_of(service.address()) as stub:
        call = stub.CountTokens(COUNT, metadata=(("turnwire-request-id", "mine"),))
        await call
        named = dict(await call.trailing_metadata())  # pyright: ignore[reportArgumentType] - pairs
        call = stub.CountTokens(COUNT)
        await call
        made = dict(await call.trailing_metadata())  # pyright: ignore[reportArgumentType] - pairs
    assert "mine" == named["turnwire-request-id"]
    assert str(made["turnwire-request-id"]).startswith("req_")


async def test_a_message_over_the_limit_is_refused_with_both_sizes():
    async with (
        hosted({"inference": inference()}, limits={"message_bytes": 10_000}) as service,
        grpc.aio.insecure_channel(service.address()) as plain,
    ):
        count = plain.unary_unary("/turnwire.inference.v1.InferenceService/CountTokens")
        error = await failure(count(b"x" * 10_001))
        assert isinstance(error, MessageTooLarge)
        assert ("10001", "10000") == (error.metadata["size_bytes"], error.metadata["limit_bytes"])
        error = await failure(count(b"\xff" * 9_000))
        assert isinstance(error, MalformedMessage)


async def test_a_message_of_the_default_limit_is_taken_and_one_byte_more_is_refused_by_us():
    four = 4 * 1024 * 1024
    async with (
        hosted({"inference": inference()}) as service,
        grpc.aio.insecure_channel(service.address()) as plain,
    ):
        count = plain.unary_unary("/turnwire.inference.v1.InferenceService/CountTokens")
        # An unknown field of the rest of the size: its tag and its length take six bytes.
        whole = b"\xfa\x7f" + _varint(four - 6) + b"x" * (four - 6)
        assert four == len(whole)
        assert await count(whole)
        assert isinstance(await failure(count(whole + b"\x00")), MessageTooLarge)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


async def test_a_call_that_grpc_itself_cuts_is_told_as_a_service_that_is_away():
    server = grpc.aio.server()

    async def cut(request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.CANCELLED, "")

    handlers = {"CountTokens": grpc.unary_unary_rpc_method_handler(cut)}
    server.add_registered_method_handlers("turnwire.inference.v1.InferenceService", handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with stub_of(f"127.0.0.1:{port}") as stub:
        error = await failure(stub.CountTokens(COUNT))
    await server.stop(None)
    assert isinstance(error, Unavailable)
    assert error.retryable
    assert "inference" in error.message


async def test_an_unknown_method_is_told_by_name():
    async with (
        hosted({"inference": inference()}) as service,
        grpc.aio.insecure_channel(service.address()) as plain,
    ):
        method = plain.unary_unary("/turnwire.inference.v1.InferenceService/Sing")
        error = await failure(method(b""))
    assert isinstance(error, Unimplemented)
    assert "InferenceService/Sing" in error.message


class Relaying(AgentServiceServicer):
    """Reads one word of a model through the directory, then does something else while the model goes on."""

    def __init__(self, directory: Directory) -> None:
        self.stub = InferenceServiceStub(directory.token_channel("inference"))
        self.left: list[float | None] = []

    async def RunTurn(self, request: Any, context: Any) -> AsyncGenerator[Any, None]:
        self.left.append(remaining())
        async with upstream(self.stub.ChatCompletion(CHAT)) as call:
            await call.read()
            yield event_pb2.StepEvent(turn_id="started")
            # As in a tool call: nobody reads the stream now.
            await asyncio.Event().wait()

    async def GetTurn(self, request: Any, context: Any) -> Any:
        self.left.append(remaining())
        try:
            await self.stub.CountTokens(COUNT)
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="inference") from error
        raise AssertionError


def relaying(directory: Directory) -> Relaying:
    return Relaying(directory)  # pyright: ignore[reportAbstractUsage] - the other methods are not called


async def test_a_caller_who_leaves_takes_the_call_to_the_model_along():
    model = Hanging()
    async with (
        hosted({"inference": inference(model), "agent": agent(relaying)}) as service,
        grpc.aio.insecure_channel(service.address("agent")) as plain,
    ):
        calls = [AgentServiceStub(plain).RunTurn(RUN) for _ in range(20)]
        for call in calls:
            assert event_pb2.StepEvent(turn_id="started") == await call.read()
        assert 20 == model.open
        for call in calls:
            call.cancel()
        async with asyncio.timeout(10):
            await model.until(0)


async def test_a_deadline_goes_along_two_hops_with_a_margin_at_each():
    class Timed(Answering):
        async def CountTokens(self, request: Any, context: Any) -> messages.CountTokensResponse:
            seen.append(context.time_remaining())
            await asyncio.Event().wait()
            raise AssertionError

    seen: list[float] = []
    relays: list[Relaying] = []

    def relay(directory: Directory) -> Relaying:
        relays.append(relaying(directory))
        return relays[-1]

    async with (
        hosted({"inference": inference(Timed()), "agent": agent(relay)}) as service,
        grpc.aio.insecure_channel(service.address("agent")) as plain,
    ):
        error = await failure(AgentServiceStub(plain).GetTurn(agent_service_pb2.GetTurnRequest(), timeout=2))
    outer = relays[0].left[0]
    assert outer is not None
    # The transport rounds up, by some milliseconds.
    assert outer < 2.1
    # The margin is 50 ms; what the hop itself takes comes on top.
    assert seen[0] < outer - 0.03
    assert isinstance(error, DeadlineExceeded)
    # The inner deadline passed first, so the caller learns who was waited for: its own would name the agent.
    assert "inference" == error.metadata["service"]


async def test_a_call_without_a_deadline_has_none_inside():
    model = Hanging()
    relays: list[Relaying] = []

    def relay(directory: Directory) -> Relaying:
        relays.append(relaying(directory))
        return relays[-1]

    async with (
        hosted({"inference": inference(model), "agent": agent(relay)}) as service,
        grpc.aio.insecure_channel(service.address("agent")) as plain,
    ):
        call = AgentServiceStub(plain).RunTurn(RUN)
        await call.read()
        assert [None] == relays[0].left
        call.cancel()
        await model.until(0)


class Gushing(Answering):
    """Writes small words as fast as it may; counts what it got rid of."""

    def __init__(self) -> None:
        self.written = 0

    async def ChatCompletion(self, request: Any, context: Any) -> AsyncGenerator[messages.ChatCompletionResponse, None]:
        while True:
            yield word("a word of some length, as tokens with their envelope have it, of some ninety bytes")
            self.written += 1


async def _written_to_a_stopped_reader(service: Hosted, gushing: Gushing, *, small_windows: bool) -> int:
    options = channel_options(small_windows=small_windows)
    async with stub_of(service.address(), options) as stub:
        call = stub.ChatCompletion(CHAT)
        await call.read()
        before = -1
        # Written until it stands still: twice the same number, with enough turns of the loop between.
        while before != gushing.written and gushing.written < 5_000:
            before = gushing.written
            await asyncio.sleep(0.3)
        call.cancel()
    return gushing.written


async def test_a_stopped_reader_of_tokens_soon_stops_the_writer():
    gushing = Gushing()
    async with hosted({"inference": inference(gushing)}) as service:
        written = await _written_to_a_stopped_reader(service, gushing, small_windows=True)
    assert written < 1_000, f"{written} stale words wait for a reader that stopped"


async def test_other_channels_have_room_for_large_messages():
    gushing = Gushing()
    async with hosted({"inference": inference(gushing)}) as service:
        written = await _written_to_a_stopped_reader(service, gushing, small_windows=False)
    assert written >= 500
