"""`remote::openai` against a server that behaves well and badly."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
import structlog

from tests.fakes.openai_server import KEY, REFUSALS, TEXT, FakeOpenAi, fake_openai
from turnwire.common.v1 import generation_pb2, inspect_service_pb2, message_pb2
from turnwire.errors import (
    ContextLengthExceeded,
    InvalidArgument,
    ProviderError,
    ProviderRateLimited,
    ProviderUnauthenticated,
    ProviderUnavailable,
    TurnwireError,
)
from turnwire.inference import providers
from turnwire.inference.v1 import inference_service_pb2, model_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SUCCEEDED = message_pb2.TOOL_CALL_PARSE_STATUS_SUCCEEDED
FAILED = message_pb2.TOOL_CALL_PARSE_STATUS_FAILED
MODEL = model_pb2.Model(model_id="fake-chat", provider_id="gpu", provider_model_id="fake-chat")
ADD = generation_pb2.ToolDefinition(name="add", description="Adds.")


@asynccontextmanager
async def _provider(base_url: str, **config: Any) -> AsyncGenerator[Any]:
    provider: Any = providers.build("gpu", "remote::openai", {"base_url": base_url, "api_key": KEY, **config})
    try:
        yield provider
    finally:
        await provider.close()


def _request(text: str = "hello", **fields: Any) -> inference_service_pb2.ChatCompletionRequest:
    message = message_pb2.Message(role=message_pb2.ROLE_USER, parts=[message_pb2.ContentPart(text=text)])
    return inference_service_pb2.ChatCompletionRequest(messages=[message], **fields)


async def _answer(fake: FakeOpenAi, *script: str, request: Any = None, **config: Any) -> list[Any]:
    fake.script = list(script)
    async with _provider(fake.base_url, **config) as provider:
        return [piece async for piece in provider.chat(MODEL, request or _request())]


def _text(pieces: list[Any]) -> str:
    return "".join(piece.text.text for piece in pieces).strip()


def _calls(pieces: list[Any]) -> list[tuple[str, str, str, int]]:
    """(name, the model's id, arguments, parse status) of each call, in the order of their numbers."""
    calls: dict[int, tuple[str, str, str, int]] = {}
    for piece in pieces:
        match piece.WhichOneof("payload"):
            case "tool_call_started":
                started = piece.tool_call_started
                assert started.index not in calls
                calls[started.index] = started.name, started.model_call_id, "", 0
            case "tool_call_delta":
                name, id, arguments, status = calls[piece.tool_call_delta.index]
                arguments += piece.tool_call_delta.arguments_json
                calls[piece.tool_call_delta.index] = name, id, arguments, status
            case "tool_call_finished":
                name, id, arguments, _ = calls[piece.tool_call_finished.index]
                calls[piece.tool_call_finished.index] = name, id, arguments, piece.tool_call_finished.parse_status
            case _:
                pass
    assert list(range(len(calls))) == sorted(calls)
    return [calls[index] for index in sorted(calls)]


@pytest.mark.parametrize(
    "behaviour", ["good", "trickle", "crlf", "comments", "no spaces", "nulls", "stays open", "drops idle"]
)
async def test_an_answer_is_whole(behaviour: str):
    async with fake_openai() as fake:
        pieces = await _answer(fake, behaviour)

    assert TEXT == _text(pieces)
    completed = pieces[-1].completed
    assert message_pb2.STOP_REASON_END_OF_TURN == completed.stop_reason
    assert generation_pb2.Usage(prompt_tokens=5, completion_tokens=5, cached_tokens=2) == completed.usage


async def test_missing_usage_is_estimated_and_says_so():
    async with fake_openai() as fake:
        pieces = await _answer(fake, "no usage")

    assert generation_pb2.Usage(prompt_tokens=2, completion_tokens=5, estimated=True) == pieces[-1].completed.usage


async def test_usage_that_is_none_breaks_nothing():
    async with fake_openai() as fake:
        pieces = await _answer(fake, "odd usage")

    assert generation_pb2.Usage() == pieces[-1].completed.usage
    assert TEXT == _text(pieces)


async def test_what_the_model_thinks_is_no_answer():
    async with fake_openai() as fake:
        pieces = await _answer(fake, "thinks")

    assert "Hm." == "".join(piece.reasoning.text for piece in pieces)
    assert TEXT == _text(pieces)


async def test_a_stop_sequence_is_told_where_the_server_tells_it():
    async with fake_openai() as fake:
        told = await _answer(fake, "stop sequence")
        untold = await _answer(fake, "good")

    assert message_pb2.STOP_REASON_STOP_SEQUENCE == told[-1].completed.stop_reason
    assert message_pb2.STOP_REASON_END_OF_TURN == untold[-1].completed.stop_reason


async def test_tools_and_sampling_reach_the_server():
    sampling = generation_pb2.SamplingParameters(
        top_p=generation_pb2.TopPSampling(temperature=0.5, top_p=0.9), max_tokens=5, seed=3, stop_sequences=["x"]
    )
    request = _request(
        tools=[ADD],
        tool_choice=generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_NAMED, name="add"),
        sampling_parameters=sampling,
    )
    async with fake_openai() as fake:
        await _answer(fake, request=request)
        sent = fake.requests[0]

    assert {"type": "function", "function": {"name": "add"}} == sent["tool_choice"]
    assert (0.5, 0.9, 5, 3, ["x"]) == tuple(sent[key] for key in ("temperature", "top_p", "max_tokens", "seed", "stop"))
    assert f"Bearer {KEY}" == sent["authorization"]
    assert not {"parallel_tool_calls", "top_k", "repetition_penalty"} & set(sent)


async def test_what_only_some_servers_know_is_sent_when_it_is_asked_for():
    sampling = generation_pb2.SamplingParameters(
        top_k=generation_pb2.TopKSampling(top_k=7), repetition_penalty=1.5, max_tokens=5
    )
    request = _request(tools=[ADD], sampling_parameters=sampling)
    async with fake_openai() as fake:
        await _answer(fake, request=request, parallel_tool_calls=True, max_tokens_field="max_completion_tokens")
        sent = fake.requests[0]

    assert (7, 1.5, True, 5) == tuple(
        sent[key] for key in ("top_k", "repetition_penalty", "parallel_tool_calls", "max_completion_tokens")
    )
    assert "max_tokens" not in sent


ONE = ("add", "call_x", '{"n": 1}', SUCCEEDED)
TWO = [ONE, ("mul", "call_y", '{"m": 2}', SUCCEEDED)]
CALLS = [
    ("good", [ONE], message_pb2.STOP_REASON_END_OF_MESSAGE),
    ("says stop", [ONE], message_pb2.STOP_REASON_END_OF_MESSAGE),
    ("two calls", TWO, message_pb2.STOP_REASON_END_OF_MESSAGE),
    ("all number 0", TWO, message_pb2.STOP_REASON_END_OF_MESSAGE),
    ("no numbers", TWO, message_pb2.STOP_REASON_END_OF_MESSAGE),
    ("name comes late", [ONE], message_pb2.STOP_REASON_END_OF_MESSAGE),
    ("cut call", [("add", "call_x", '{"n"', FAILED)], message_pb2.STOP_REASON_OUT_OF_TOKENS),
]


@pytest.mark.parametrize(("behaviour", "calls", "reason"), CALLS, ids=[row[0] for row in CALLS])
async def test_calls_come_whole_however_they_are_sent(behaviour: str, calls: list[Any], reason: int):
    async with fake_openai() as fake:
        pieces = await _answer(fake, behaviour, request=_request(tools=[ADD]))

    assert calls == _calls(pieces)
    assert reason == pieces[-1].completed.stop_reason


@pytest.mark.parametrize(
    ("tool_api", "form"), [(False, None), (True, generation_pb2.TOOL_PROMPT_FORMAT_FUNCTION_TAG)], ids=["none", "named"]
)
async def test_tools_stand_in_the_prompt_where_there_is_no_interface_or_a_format_is_named(tool_api: bool, form: Any):
    required = generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_REQUIRED)
    async with fake_openai() as fake:
        await _answer(fake, request=_request(tools=[ADD], tool_prompt_format=form), tool_api=tool_api)
        await _answer(
            fake, request=_request(tools=[ADD], tool_prompt_format=form, tool_choice=required), tool_api=tool_api
        )
        free, forced = fake.requests

    assert not {"tools", "tool_choice", "response_format"} & set(free)
    assert "Adds." in free["messages"][0]["content"]
    assert ("<function=" in free["messages"][0]["content"]) == (form is not None)
    schema = forced["response_format"]["json_schema"]["schema"]
    assert {"const": "add"} == schema["properties"]["name"]


FAILURES = [
    ("death", ProviderUnavailable),
    ("no end", ProviderUnavailable),
    ("goes silent", ProviderUnavailable),
    ("silent", ProviderUnavailable),
    ("wordless", ProviderUnavailable),
    ("500", ProviderUnavailable),
    ("503", ProviderUnavailable),
    ("old vllm error", ProviderUnavailable),
    ("malformed", ProviderError),
    ("wrong json", ProviderError),
    ("half a character", ProviderError),
    ("error in stream", ProviderError),
    ("huge line", ProviderError),
    ("json", ProviderError),
    ("page", ProviderError),
    ("redirect", ProviderError),
    ("404", ProviderError),
    ("429 600", ProviderRateLimited),
    ("401", ProviderUnauthenticated),
    ("403", ProviderUnauthenticated),
    ("error with code", ContextLengthExceeded),
    ("422", InvalidArgument),
    ("refusal field", InvalidArgument),
    ("refusal echo", InvalidArgument),
]


@pytest.mark.parametrize(("behaviour", "error"), FAILURES, ids=[row[0] for row in FAILURES])
async def test_a_failure_has_a_name_keeps_the_key_and_leaves_nothing_open(behaviour: str, error: type[TurnwireError]):
    async with fake_openai() as fake, _provider(fake.base_url, silence_seconds=0.6, first_byte_seconds=1.2) as provider:
        fake.script = [behaviour]
        with structlog.testing.capture_logs() as logs, pytest.raises(error) as raised:
            async for _ in provider.chat(MODEL, _request()):
                pass
        # Tried once: whoever asked decides whether to ask again.
        assert 1 == len(fake.requests)
        while fake.open:
            await asyncio.sleep(0.01)
        assert "0 open streams" == provider.state()[1]

        # The next answer is good.
        assert TEXT == _text([piece async for piece in provider.chat(MODEL, _request())])

    assert error is type(raised.value)
    if behaviour == "goes silent":
        assert "0.6 s" in str(raised.value)
    assert KEY not in f"{raised.value} {raised.value.metadata} {raised.value.violations} {logs}"


@pytest.mark.parametrize(
    ("behaviour", "least", "most"),
    [
        ("429 0", 0, 0),
        ("429 2.5", 2.5, 2.5),
        ("429 600", 600, 600),
        ("429 date", 80, 90),
        ("429 milliseconds", 1.5, 1.5),
    ],
)
async def test_what_the_server_says_of_waiting_is_told(behaviour: str, least: float, most: float):
    async with fake_openai() as fake:
        with pytest.raises(ProviderRateLimited) as raised:
            await _answer(fake, behaviour)

    assert raised.value.retry_after is not None
    assert least <= raised.value.retry_after <= most


@pytest.mark.parametrize("told", ["soon", "-1", "nan", "inf", "Mon, 99 Nov 2026 99:99:99 GMT"])
async def test_nonsense_about_waiting_is_passed_over(told: str):
    async with fake_openai() as fake:
        with pytest.raises(ProviderRateLimited) as raised:
            await _answer(fake, f"429 {told}")

    assert raised.value.retry_after in {None, 0}


NUMBERS = {
    "openai messages": ("5000", "4097"),
    "openai bare": ("2", "0"),
    "vllm requested": ("4500", "4096"),
    "vllm input": ("5000", "4096"),
    "vllm too large": ("200", "4096"),
    "vllm decoder": ("5000", "4096"),
    "llama.cpp": ("5000", "4096"),
}


@pytest.mark.parametrize("which", NUMBERS)
async def test_a_prompt_that_does_not_fit_names_both_numbers(which: str):
    async with fake_openai() as fake:
        with pytest.raises(ContextLengthExceeded) as raised:
            await _answer(fake, f"refusal {which}")

    assert NUMBERS[which] == tuple(raised.value.metadata[key] for key in ("prompt_tokens", "context_tokens"))


async def test_a_field_that_the_server_does_not_know_is_named():
    sampling = generation_pb2.SamplingParameters(top_k=generation_pb2.TopKSampling(top_k=3))
    async with fake_openai() as fake:
        with pytest.raises(InvalidArgument) as raised:
            await _answer(fake, "refusal field", request=_request(sampling_parameters=sampling))

    assert ["request.top_k"] == [violation.field for violation in raised.value.violations]
    assert REFUSALS["field"]["message"] in str(raised.value)


async def test_reading_a_long_prompt_is_no_silence():
    """Servers send their headers at once and then read: the first event has the patience of a first byte."""
    async with (
        fake_openai() as fake,
        _provider(fake.base_url, silence_seconds=0.05, first_byte_seconds=0.5) as provider,
    ):
        fake.script = ["silent"]
        begun = time.monotonic()
        with pytest.raises(ProviderUnavailable, match=r"0\.5 s"):
            _ = [piece async for piece in provider.chat(MODEL, _request())]

    assert time.monotonic() - begun >= 0.5


async def test_answers_share_one_connection_and_one_left_in_the_middle_is_not_used_again():
    async with fake_openai() as fake, _provider(fake.base_url) as provider:
        # The end of a stream may come after its last word.
        fake.script = ["good", "ends late", "ends late"]
        for _ in range(5):
            assert TEXT == _text([piece async for piece in provider.chat(MODEL, _request())])
        await provider.embed(MODEL, ["a"])
        assert 1 == len(fake.connections)

        fake.script = ["endless"]
        async with aclosing(provider.chat(MODEL, _request())) as pieces:
            await anext(pieces)
        assert TEXT == _text([piece async for piece in provider.chat(MODEL, _request())])
        assert 2 == len(fake.connections)


async def test_a_connection_that_the_server_closed_meanwhile_costs_nobody_an_answer():
    async with fake_openai() as fake, _provider(fake.base_url) as provider:
        for _ in range(20):
            fake.script = ["drops idle"]
            assert TEXT == _text([piece async for piece in provider.chat(MODEL, _request())])
        assert 20 == len(fake.requests)


async def test_leaving_closes_the_connection():
    async with fake_openai() as fake, _provider(fake.base_url) as provider:
        fake.script = ["endless"]
        async with aclosing(provider.chat(MODEL, _request())) as pieces:
            async for _ in pieces:
                break
        assert "0 open streams" == provider.state()[1]
        while fake.open:
            await asyncio.sleep(0.01)


async def test_a_caller_that_is_cancelled_closes_the_connection():
    async with fake_openai() as fake, _provider(fake.base_url) as provider:
        fake.script = ["goes silent"]

        async def read() -> None:
            async with aclosing(provider.chat(MODEL, _request())) as pieces:
                async for _ in pieces:
                    pass

        reading = asyncio.create_task(read())
        while not fake.open:
            await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.wait([reading])
        while fake.open:
            await asyncio.sleep(0.01)
        assert "0 open streams" == provider.state()[1]


async def test_vectors_have_length_one_and_keep_their_order():
    async with fake_openai() as fake, _provider(fake.base_url) as provider:
        response = await provider.embed(MODEL, ["a" * (index % 7) for index in range(150)])
        # Few at a time, so that reading them holds nobody up.
        assert [64, 64, 22] == [len(request["input"]) for request in fake.requests]

    expected = [(index % 7) / ((index % 7) ** 2 + 16) ** 0.5 for index in range(150)]
    assert pytest.approx(expected) == [each.values[0] for each in response.embeddings]
    assert 150 == response.usage.prompt_tokens


@pytest.mark.parametrize(("behaviour", "error"), [("wrong json", ProviderError), ("one less", ProviderError)])
async def test_vectors_that_are_none_are_refused(behaviour: str, error: type[TurnwireError]):
    async with fake_openai() as fake, _provider(fake.base_url) as provider:
        fake.script = [behaviour]
        with pytest.raises(error):
            await provider.embed(MODEL, ["a", "b"])


async def test_the_server_is_asked_what_it_serves():
    async with fake_openai() as fake, _provider(fake.base_url) as provider:
        fake.models["data"].append({"id": "vllm", "max_model_len": 4096})
        models = await provider.models()
        await provider.models()

        assert [("fake-chat", 0, True), ("vllm", 4096, True)] == [
            (model.model_id, model.context_tokens, model.tool_calling) for model in models
        ]
        # Nobody asks again so soon, not even in the background.
        assert provider._listed._asking is not None
        await provider._listed._asking
        assert 1 == fake.models_asked


@pytest.mark.parametrize("models", [{"object": "list"}, {"data": [{"name": "x"}]}, "nothing", {"data": None}])
async def test_a_list_of_models_that_is_none_makes_the_provider_unavailable(models: Any):
    async with fake_openai() as fake, _provider(fake.base_url) as provider:
        fake.models = models
        with pytest.raises(ProviderError):
            await provider.models()
        assert inspect_service_pb2.Provider.STATE_UNAVAILABLE == provider.state()[0]


async def test_a_server_that_is_not_there():
    async with _provider("http://127.0.0.1:9/v1") as provider:
        with pytest.raises(ProviderUnavailable, match=r"127\.0\.0\.1:9"):
            await provider.models()
        with pytest.raises(ProviderUnavailable, match=r"127\.0\.0\.1:9"):
            _ = [piece async for piece in provider.chat(MODEL, _request())]


async def test_a_server_that_does_not_answer_holds_callers_up_once():
    async with fake_openai() as fake, _provider(fake.base_url, connect_seconds=0.3) as provider:
        fake.models_answer.clear()
        with pytest.raises(ProviderUnavailable, match=r"0\.3 s"):
            await provider.models()
        begun = time.monotonic()
        for _ in range(20):
            with pytest.raises(ProviderUnavailable):
                await provider.models()
        # Each would wait for 0.3 s.
        assert time.monotonic() - begun < 20 * 0.3 / 4
        assert 1 == fake.models_asked

        # Later it is asked again, and whoever asks waits for half a second of that at most.
        provider._listed._seconds = 30
        provider._listed._until = 0
        begun = time.monotonic()
        with pytest.raises(ProviderUnavailable):
            await provider.models()
        assert time.monotonic() - begun < 5

        # And then is there.
        fake.models_answer.set()
        while inspect_service_pb2.Provider.STATE_UNAVAILABLE == provider.state()[0]:
            try:
                await provider.models()
            except ProviderUnavailable:
                await asyncio.sleep(0.05)
        assert ["fake-chat"] == [model.model_id for model in await provider.models()]


async def test_a_password_in_the_address_stands_in_no_error():
    async with _provider("http://somebody:a-password@127.0.0.1:9/v1") as provider:
        with pytest.raises(ProviderUnavailable) as raised:
            await provider.models()
    assert "somebody" not in str(raised.value)
    assert "password" not in str(raised.value)


async def test_a_key_out_of_a_file_may_end_its_line_and_must_be_one_line():
    async with fake_openai() as fake:
        await _answer(fake, api_key=f"{KEY}\n")
        assert f"Bearer {KEY}" == fake.requests[0]["authorization"]
        with pytest.raises(InvalidArgument) as raised:
            await _answer(fake, api_key="two\nlines")
    assert ["providers.inference[gpu].config.api_key"] == [violation.field for violation in raised.value.violations]


async def test_the_makers_sdk_runs_unchanged_against_the_fake():
    async with fake_openai() as fake, openai.AsyncOpenAI(base_url=fake.base_url, api_key=KEY, max_retries=0) as client:
        hello: Any = {"model": "fake-chat", "messages": [{"role": "user", "content": "hello"}], "stream": True}
        stream: Any = await client.chat.completions.create(**hello)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        fake.script = ["two calls"]
        stream = await client.chat.completions.create(
            **hello, tools=[{"type": "function", "function": {"name": "add", "parameters": {}}}]
        )
        arguments = ["", ""]
        async for chunk in stream:
            for call in (chunk.choices[0].delta.tool_calls or ()) if chunk.choices else ():
                arguments[call.index] += call.function.arguments
        names = [model.id async for model in client.models.list()]
        vectors = await client.embeddings.create(model="m", input=["a"], encoding_format="float")
        fake.script = ["429 7"]
        with pytest.raises(openai.RateLimitError) as limited:
            await client.chat.completions.create(**hello)
        fake.script = ["refusal openai messages"]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**hello)

    assert (TEXT, ["fake-chat"]) == (text.strip(), names)
    assert ['{"n": 1}', '{"m": 2}'] == arguments
    assert [1.0, 4.0] == vectors.data[0].embedding
    assert "7" == limited.value.response.headers["retry-after"]
    assert "context_length_exceeded" == refused.value.code
