"""What every chat provider keeps to: scripted, embedded, and behind OpenAI's API."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from turnwire.common.v1 import generation_pb2, message_pb2
from turnwire.errors import ContextLengthExceeded
from turnwire.inference.v1 import inference_service_pb2

if TYPE_CHECKING:
    from tests.inference.conftest import Subject

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]
GREEDY: dict[str, Any] = {"greedy": generation_pb2.GreedySampling()}
ADD = generation_pb2.ToolDefinition(
    name="add",
    description="Adds a number.",
    parameters_json_schema='{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}',
)


def request_of(text: str, sampling: dict[str, Any] | None = None, **fields: Any) -> Any:
    message = message_pb2.Message(role=message_pb2.ROLE_USER, parts=[message_pb2.ContentPart(text=text)])
    wanted: dict[str, Any] = {"max_tokens": 24, **(sampling or GREEDY)}
    parameters = generation_pb2.SamplingParameters(**wanted)
    return inference_service_pb2.ChatCompletionRequest(messages=[message], sampling_parameters=parameters, **fields)


async def pieces_of(subject: Subject, request: Any) -> list[Any]:
    return [piece async for piece in subject.provider.chat(subject.model, request)]


def text_of(pieces: list[Any]) -> str:
    return "".join(piece.text.text for piece in pieces)


def kinds(pieces: list[Any]) -> list[str]:
    """The kinds of pieces in their order, runs of one kind once."""
    found: list[str] = []
    for piece in pieces:
        kind = piece.WhichOneof("payload")
        if found[-1:] != [kind]:
            found.append(kind)
    return found


async def until_idle(subject: Subject) -> None:
    async with asyncio.timeout(20):
        while not subject.idle:
            await asyncio.sleep(0.005)


async def test_text_comes_in_pieces_and_then_its_end(subject: Subject):
    pieces = await pieces_of(subject, request_of("Count from one to ten in words.", {**GREEDY, "max_tokens": 200}))

    assert ["text", "completed"] == kinds(pieces)
    assert len(pieces) > 3
    completed = pieces[-1].completed
    assert message_pb2.STOP_REASON_END_OF_TURN == completed.stop_reason
    assert completed.usage.prompt_tokens > 1
    assert completed.usage.completion_tokens >= len(pieces) - 1
    assert not completed.usage.estimated


async def test_a_text_is_continued_without_a_conversation(subject: Subject):
    sampling = generation_pb2.SamplingParameters(**GREEDY, max_tokens=3)
    request = inference_service_pb2.CompletionRequest(prompt="One two three long", sampling_parameters=sampling)
    pieces = [piece async for piece in subject.provider.complete(subject.model, request)]

    assert ["text", "completed"] == kinds(pieces)
    assert message_pb2.STOP_REASON_OUT_OF_TOKENS == pieces[-1].completed.stop_reason
    assert 3 == pieces[-1].completed.usage.completion_tokens


async def test_leaving_frees_the_model_at_once(subject: Subject):
    for _ in range(5):
        async with aclosing(
            subject.provider.chat(subject.model, request_of("Tell a long story.", {"max_tokens": 800}))
        ) as pieces:
            await anext(pieces)
            assert not subject.idle
        await until_idle(subject)


async def test_many_streams_at_once_end_and_leave_nothing_open(subject: Subject):
    async def one(number: int) -> str:
        return text_of(await pieces_of(subject, request_of(f"Say {number}.", {**GREEDY, "max_tokens": 4})))

    texts = await asyncio.gather(*(one(number) for number in range(12)))
    assert all(texts)
    await until_idle(subject)


@pytest.mark.parametrize("limit", [1, 2, 5, 40])
async def test_no_piece_splits_a_character(subject: Subject, limit: int):
    asked = request_of("Repeat exactly and say nothing else: Grüße 🍳 日本語 👩‍👩‍👧!", {**GREEDY, "max_tokens": limit})
    pieces = await pieces_of(subject, asked)

    # A character in halves is no text at all on the wire, or comes as U+FFFD.
    assert "�" not in text_of(pieces)
    assert text_of(pieces).encode().decode() == text_of(pieces)
    assert pieces[-1].completed.usage.completion_tokens <= limit


async def test_max_tokens_cut_the_answer_and_say_so(subject: Subject):
    pieces = await pieces_of(subject, request_of("Tell a long story.", {**GREEDY, "max_tokens": 3}))

    assert message_pb2.STOP_REASON_OUT_OF_TOKENS == pieces[-1].completed.stop_reason
    assert 3 == pieces[-1].completed.usage.completion_tokens


async def test_a_stop_sequence_ends_the_answer_and_is_no_part_of_it(subject: Subject):
    asked = "Say the numbers from 1 to 9, a long list."
    whole = text_of(await pieces_of(subject, request_of(asked, {**GREEDY, "max_tokens": 20})))
    stop = whole[8:10]
    sampling = {**GREEDY, "max_tokens": 20, "stop_sequences": ["never written", stop]}
    pieces = await pieces_of(subject, request_of(asked, sampling))

    assert whole.split(stop)[0].strip() == text_of(pieces).strip()
    expected = (
        message_pb2.STOP_REASON_STOP_SEQUENCE if subject.tells_stop_sequences else message_pb2.STOP_REASON_END_OF_TURN
    )
    completed = pieces[-1].completed
    assert expected == completed.stop_reason
    assert 0 < completed.usage.completion_tokens <= 20
    assert completed.usage.prompt_tokens > 1
    await until_idle(subject)


@pytest.mark.parametrize("form", [0, *generation_pb2.ToolPromptFormat.values()[1:]])
async def test_a_required_call_comes_whole(subject: Subject, form: Any):
    named = generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_REQUIRED)
    if form == generation_pb2.TOOL_PROMPT_FORMAT_UNSPECIFIED and subject.provider.provider_id == "gpu":
        # Whether a call is made is this server's word alone: llama.cpp's enforces nothing. With a format it is ours.
        form = generation_pb2.TOOL_PROMPT_FORMAT_JSON
    asked = request_of(
        "Please add 1.", {**GREEDY, "max_tokens": 80}, tools=[ADD], tool_choice=named, tool_prompt_format=form
    )
    pieces = await pieces_of(subject, asked)
    if subject.model.model_id == "fake-chat":
        # The fake writes what the schema asks for; that it is asked is what is seen here.
        assert {"name": 1, "arguments": 1} == json.loads(text_of(pieces))
        return

    assert ["tool_call_started", "tool_call_delta", "tool_call_finished", "completed"] == kinds(pieces)
    started, finished = pieces[0].tool_call_started, pieces[-2].tool_call_finished
    assert (0, "add", 0) == (started.index, started.name, finished.index)
    assert message_pb2.TOOL_CALL_PARSE_STATUS_SUCCEEDED == finished.parse_status
    arguments = json.loads("".join(piece.tool_call_delta.arguments_json for piece in pieces))
    assert ["n"] == list(arguments)
    assert isinstance(arguments["n"], int)
    assert message_pb2.STOP_REASON_END_OF_MESSAGE == pieces[-1].completed.stop_reason


async def test_an_answer_keeps_to_a_json_schema(subject: Subject):
    if not subject.holds_to_schemas:
        pytest.skip("a script writes what it says")
    schema = '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],"additionalProperties":false}'
    form = generation_pb2.ResponseFormat(json_schema=schema)
    pieces = await pieces_of(subject, request_of("Any number?", {**GREEDY, "max_tokens": 60}, response_format=form))

    assert ["n"] == list(json.loads(text_of(pieces)))


async def test_a_seed_makes_an_answer_come_again(subject: Subject):
    sampling = {"top_p": generation_pb2.TopPSampling(temperature=1.5, top_p=0.95), "seed": 7, "max_tokens": 12}
    texts = [text_of(await pieces_of(subject, request_of("A line about the sea.", sampling))) for _ in range(3)]

    # The first reads its prompt and the others find it read, which may round otherwise.
    assert texts[1] == texts[2]


async def test_a_prompt_that_does_not_fit_names_both_numbers(subject: Subject):
    with pytest.raises(ContextLengthExceeded) as raised:
        await pieces_of(subject, request_of("word " * 1500))
    assert int(raised.value.metadata["prompt_tokens"]) >= 1500
    assert int(raised.value.metadata["context_tokens"]) in {1000, 1024}
    await until_idle(subject)

    # The next one is answered.
    assert text_of(await pieces_of(subject, request_of("Say hello.")))


async def test_the_tokens_of_a_prompt_are_counted(subject: Subject):
    message = request_of("one two three four five six seven eight").messages
    counted = await subject.provider.count_tokens(
        subject.model, inference_service_pb2.CountTokensRequest(messages=message)
    )
    longer = await subject.provider.count_tokens(
        subject.model, inference_service_pb2.CountTokensRequest(messages=message, tools=[ADD])
    )
    assert counted.prompt_tokens >= 8
    if subject.provider.provider_id != "scripted":
        assert longer.prompt_tokens > counted.prompt_tokens
    assert subject.model.context_tokens == counted.context_tokens
    assert (subject.provider.provider_id == "gpu") == counted.estimated
