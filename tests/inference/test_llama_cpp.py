"""What the embedded engine does besides what every provider does: batching, stopping early, sampling, failing."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from tests.inference.conftest import LLAMA_MODEL, Subject
from tests.inference.test_providers import ADD, GREEDY, kinds, pieces_of, request_of, text_of, until_idle
from turnwire import weights
from turnwire.common.v1 import generation_pb2, inspect_service_pb2
from turnwire.errors import InvalidArgument, ProviderUnavailable
from turnwire.inference import providers
from turnwire.inference.tool_formats import call_schema
from turnwire.inference.v1 import inference_service_pb2
from turnwire.testing.mesh import running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]
SEA = "Write one line about the sea."
TopK, TopP = generation_pb2.TopKSampling, generation_pb2.TopPSampling


async def _says(llama: Subject, **sampling: Any) -> str:
    return text_of(await pieces_of(llama, request_of(SEA, {"max_tokens": 10, **sampling})))


async def test_open_streams_are_written_together(llama: Subject):
    """Each of four streams writes before any of them has ended: they share the engine's batches."""
    written: list[int] = []
    ended: list[int] = []

    async def one(number: int) -> None:
        async for piece in llama.provider.chat(llama.model, request_of(f"Tell story {number}.", {"max_tokens": 24})):
            if piece.WhichOneof("payload") == "text" and not ended:
                written.append(number)
        ended.append(number)

    await asyncio.gather(*(one(number) for number in range(4)))
    assert {0, 1, 2, 3} == set(written)
    # And they take turns: no one has written its all before the next began.
    assert sum(first != second for first, second in pairwise(written)) > 8


async def test_leaving_stops_a_prompt_that_is_being_read(llama: Subject):
    """The engine lets go at the end of the batch it is at; what was read by then is what it has cached."""
    engine = llama.provider._engine(LLAMA_MODEL)
    asked = {"messages": [{"role": "user", "content": " ".join(f"w{n}" for n in range(240))}], "stream": True}
    async with aclosing(engine._stream("handle_chat_completions", asked, "messages")) as chunks:
        progress = (await anext(chunks))["prompt_progress"]
        while not progress["processed"]:
            progress = (await anext(chunks))["prompt_progress"]
    assert 800 < progress["total"]
    assert progress["processed"] < 200
    await until_idle(llama)

    async with aclosing(engine._stream("handle_chat_completions", asked, "messages")) as chunks:
        again = (await anext(chunks))["prompt_progress"]
    await until_idle(llama)
    assert again["cache"] <= progress["processed"] + 2 * 128


async def test_greedy_is_the_same_each_time_and_the_most_probable(llama: Subject):
    first = await _says(llama, **GREEDY)

    assert first == await _says(llama, **GREEDY)
    # One candidate, or as few as make up hardly any probability: the same choice, at any temperature.
    assert first == await _says(llama, top_k=TopK(top_k=1, temperature=2.0))
    assert first == await _says(llama, top_p=TopP(top_p=1e-6, temperature=2.0))
    assert first == await _says(llama, top_k=TopK(top_k=40, temperature=0.01))


async def test_temperature_top_k_top_p_and_seed_change_what_is_written(llama: Subject):
    hot = {"temperature": 2.0}
    by_seed = {await _says(llama, top_p=TopP(top_p=1.0, **hot), seed=seed) for seed in (1, 2, 3)}
    assert 3 == len(by_seed)
    # Without a seed, another one each time.
    assert 1 < len({await _says(llama, top_p=TopP(top_p=1.0, **hot)) for _ in range(3)})
    # Of the same seed, fewer candidates and less heat make other answers.
    wide = await _says(llama, top_p=TopP(top_p=1.0, **hot), seed=5)
    assert wide != await _says(llama, top_p=TopP(top_p=0.3, **hot), seed=5)
    assert wide != await _says(llama, top_k=TopK(top_k=3, **hot), seed=5)
    assert wide != await _says(llama, top_p=TopP(top_p=1.0, temperature=0.2), seed=5)


async def test_nucleus_sampling_is_not_cut_down_by_the_engines_other_filters(llama: Subject):
    """By itself the engine keeps 40 candidates and drops the improbable ones, also of a nucleus of everything."""
    engine = llama.provider._engine(LLAMA_MODEL)
    asked = {"messages": [{"role": "user", "content": SEA}], "stream": True, "max_tokens": 10}
    cut = ""
    async with aclosing(engine.chat(asked | {"temperature": 2.0, "top_p": 1.0, "seed": 5})) as chunks:
        async for chunk in chunks:
            cut += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])

    assert cut != await _says(llama, top_p=TopP(top_p=1.0, temperature=2.0), seed=5)


@pytest.mark.parametrize("seed", [-1, 0, 2**32 - 1, 2**63 - 1, -(2**63)])
async def test_any_seed_of_the_contract_makes_an_answer_come_again(llama: Subject, seed: int):
    sampling = {"top_p": TopP(top_p=1.0, temperature=1.5), "seed": seed}
    _ = await _says(llama, **sampling)
    assert await _says(llama, **sampling) == await _says(llama, **sampling)


async def test_the_repetition_penalty_makes_repetition_rarer(llama: Subject):
    async def continued(penalty: float) -> str:
        sampling = generation_pb2.SamplingParameters(
            greedy=generation_pb2.GreedySampling(), max_tokens=20, repetition_penalty=penalty
        )
        request = inference_service_pb2.CompletionRequest(prompt="tea, " * 29 + "tea,", sampling_parameters=sampling)
        return "".join([piece.text.text async for piece in llama.provider.complete(llama.model, request)])

    plain, held = await continued(1.0), await continued(2.0)
    assert plain.count("tea") > 8
    assert held.count("tea") < plain.count("tea")


async def test_stopping_at_a_sequence_stops_the_engine(llama: Subject):
    sampling = {**GREEDY, "max_tokens": 400, "stop_sequences": ["3"]}
    pieces = await pieces_of(llama, request_of("Count from 1 to 200, separated by commas.", sampling))
    assert "3" not in text_of(pieces)
    assert pieces[-1].completed.usage.completion_tokens < 20
    await until_idle(llama)


async def test_a_named_choice_is_enforced(llama: Subject):
    sub = generation_pb2.ToolDefinition(name="sub", parameters_json_schema=ADD.parameters_json_schema)
    choice = generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_NAMED, name="sub")
    asked = request_of("Please add 1 and 2.", {**GREEDY, "max_tokens": 60}, tools=[ADD, sub], tool_choice=choice)
    pieces = await pieces_of(llama, asked)

    assert "sub" == pieces[0].tool_call_started.name
    arguments = json.loads("".join(piece.tool_call_delta.arguments_json for piece in pieces))
    Draft202012Validator(call_schema([sub])).validate({"name": "sub", "arguments": arguments})


async def test_no_tool_is_called_when_none_is_offered(llama: Subject):
    choice = generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_NONE)
    asked = request_of('Say exactly: {"name": "add", "arguments": {"n": 1}}', tools=[ADD], tool_choice=choice)
    assert ["text", "completed"] == kinds(await pieces_of(llama, asked))


async def test_each_tool_prompt_format_is_written_its_own_way(llama: Subject):
    counts = {
        (
            await llama.provider.count_tokens(
                llama.model,
                inference_service_pb2.CountTokensRequest(
                    messages=request_of("hello").messages, tools=[ADD], tool_prompt_format=form
                ),
            )
        ).prompt_tokens
        for form in generation_pb2.ToolPromptFormat.values()[1:]
    }
    assert 3 == len(counts)


async def test_what_the_engine_cannot_hold_an_answer_to_is_named(llama: Subject):
    odd = '{"type":"object","properties":{"s":{"type":"nonsense"}},"required":["s"]}'
    tool = generation_pb2.ToolDefinition(name="odd", parameters_json_schema=odd)
    choice = generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_REQUIRED)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"response_format": generation_pb2.ResponseFormat(grammar="root ::= (")}, "response_format"),
        ({"response_format": generation_pb2.ResponseFormat(json_schema='{"type": "nonsense"}')}, "response_format"),
        ({"tools": [tool], "tool_choice": choice}, "tools"),
    ]
    for fields, field in wrong:
        with pytest.raises(InvalidArgument) as raised:
            await pieces_of(llama, request_of("x", **fields))
        assert [field] == [violation.field for violation in raised.value.violations]
        await until_idle(llama)
    # None of it has left the engine in a bad state.
    assert await _says(llama, **GREEDY)


@asynccontextmanager
async def _small(path: Path) -> AsyncGenerator[Subject]:
    config = {"models": [{"model_id": "m", "path": str(path), "context_tokens": 512}], "parallel": 1}
    provider: Any = providers.build("small", "inline::llama-cpp", config)
    try:
        yield Subject(provider, (await provider.models())[0])
    finally:
        await provider.close()


async def test_a_file_that_is_no_model_is_told_and_can_be_mended(tmp_path: Path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    async with _small(path) as small:
        await small.provider.start()
        for _ in range(2):
            with pytest.raises(ProviderUnavailable, match=r"m\.gguf cannot be loaded"):
                await pieces_of(small, request_of("x"))
        state, detail = small.provider.state()
        assert inspect_service_pb2.Provider.STATE_UNAVAILABLE == state
        assert str(path) in detail

        path.unlink()
        path.symlink_to(weights.locate(LLAMA_MODEL))
        assert text_of(await pieces_of(small, request_of("Say hello.", {"max_tokens": 3})))
        assert (inspect_service_pb2.Provider.STATE_READY, "0 open streams") == small.provider.state()


async def test_a_file_that_is_no_model_leaves_the_service_up(tmp_path: Path):
    path = tmp_path / "m.gguf"
    with weights.locate(LLAMA_MODEL).open("rb") as whole:
        # The head of a real one: it breaks off in its tensors.
        path.write_bytes(whole.read(8 * 1024 * 1024))
    config = {"models": [{"model_id": "m", "path": str(path)}]}
    local = {"provider_id": "local", "provider_type": "inline::llama-cpp", "config": config}
    scripted = {"provider_id": "scripted", "provider_type": "inline::scripted", "config": {}}
    async with running_mesh("processes", services=("inference",), providers={"inference": [local, scripted]}) as mesh:
        async with mesh.client() as client:
            message = request_of("hello").messages
            with pytest.raises(ProviderUnavailable, match="cannot be loaded"):
                await _asked(client, inference_service_pb2.ChatCompletionRequest(model="m", messages=message))
            asked = inference_service_pb2.ChatCompletionRequest(model="scripted", messages=message)
            assert "hello" == text_of(await _asked(client, asked))
            states = {each.provider_id: each.state for each in await client.list_providers("inference")}
        assert "Traceback" not in mesh.log("inference")
    assert inspect_service_pb2.Provider.STATE_UNAVAILABLE == states["local"]


async def _asked(client: Any, request: Any) -> list[Any]:
    import grpc

    from turnwire.errors import from_rpc_error

    try:
        return [piece async for piece in client.inference_stub.ChatCompletion(request, timeout=60)]
    except grpc.RpcError as error:
        raise from_rpc_error(error, service="inference") from error


async def test_closing_ends_what_is_being_written_and_what_waits():
    async with _small(weights.locate(LLAMA_MODEL)) as small:
        begun = asyncio.Event()

        async def one() -> None:
            async for _ in small.provider.chat(small.model, request_of("Tell a long story.", {"max_tokens": 400})):
                begun.set()

        # One is written, the others wait for its place.
        streams = [asyncio.create_task(one()) for _ in range(3)]
        await begun.wait()
        await small.provider.close()
        ends = await asyncio.gather(*streams, return_exceptions=True)
        assert [ProviderUnavailable] * 3 == [type(end) for end in ends]
        with pytest.raises(ProviderUnavailable):
            await pieces_of(small, request_of("x"))
