"""The embedded model and the embeddings, real ones, through the mesh as it is shipped."""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator

from turnwire import weights
from turnwire.agent.v1 import agent_pb2, step_pb2, turn_pb2
from turnwire.common.v1 import generation_pb2, message_pb2
from turnwire.errors import ContextLengthExceeded, InvalidArgument, from_rpc_error
from turnwire.inference.v1 import inference_service_pb2
from turnwire.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from turnwire.runtime.settings import ProvidersSettings
from turnwire.testing.mesh import RunningMesh, running_mesh

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from turnwire.client import Client

pytestmark = [pytest.mark.mesh, pytest.mark.model, pytest.mark.timeout(300)]
MODEL = "qwen2.5-coder-0.5b"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shipped() -> AsyncGenerator[RunningMesh]:
    """A mesh with the providers of the shipped configuration."""
    weights.locate(MODEL)
    providers = json.loads(ProvidersSettings().model_dump_json())
    async with running_mesh("processes", providers=providers) as mesh:
        yield mesh


@pytest.mark.everyday
@pytest.mark.asyncio(loop_scope="session")
async def test_the_ready_made_agent_answers(shipped: RunningMesh):
    async with shipped.client() as client:
        session = await client.create_session("assistant")
        turn = await client.run_turn(session.session_id, "Say hello.").result()

        assert turn_pb2.TURN_STATUS_COMPLETED == turn.status
        assert turn.output.parts[0].text
        assert message_pb2.STOP_REASON_END_OF_TURN == turn.output.stop_reason
        usage = turn.usage
        assert usage.prompt_tokens > 10
        assert usage.completion_tokens > 0
        assert not usage.estimated
        assert turn.usage.prompt_tokens < 700


def _tool(name: str, description: str, properties: dict[str, Any]) -> agent_pb2.AgentTool:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    definition = generation_pb2.ToolDefinition(
        name=name, description=description, parameters_json_schema=json.dumps(schema)
    )
    return agent_pb2.AgentTool(function=agent_pb2.FunctionTool(definition=definition))


TOOLS = [
    _tool("get_weather", "The weather of a city.", {"city": {"type": "string"}}),
    _tool("search", "Searches the web.", {"query": {"type": "string"}, "limit": {"type": "integer"}}),
    _tool(
        "convert", "Converts money.", {"amount": {"type": "number"}, "to": {"type": "string", "enum": ["EUR", "USD"]}}
    ),
]
PROMPTS = [
    *(f"What is the weather in {city}?" for city in ("Berlin", "Paris", "Rome", "Oslo", "Lima", "São Paulo")),
    *(f"Find pages about {topic}." for topic in ("gRPC", "bees", "chess", "tea", "Mars", 'the word "quote"')),
    *(f"How much are {amount} pounds in euros?" for amount in (1, 2.5, 10, 99, 1000, "a thousand")),
    *(f"Say hello to {name} and nothing else." for name in ("Ada", "Bob", "Eve", "Zoë", "李", "🍳")),
    "I need an umbrella?",
    "Convert.",
    "weather, search or convert",
    "Write a poem about the sea.",
    "Do not call any tool.",
    '{"name": "none", "arguments": {}}',
]


async def _required_call(client: Client, agent_id: str, prompt: str) -> None:
    """One turn with a call that has to be made: the call fits its schema, and the turn goes on with the result."""
    schemas = {
        tool.function.definition.name: Draft202012Validator(json.loads(tool.function.definition.parameters_json_schema))
        for tool in TOOLS
    }
    session = await client.create_session(agent_id)
    turn = await client.run_turn(session.session_id, prompt).result()
    assert turn_pb2.TURN_STATUS_AWAITING_INPUT == turn.status, prompt
    assert turn.awaited_input.requests, prompt
    for request in turn.awaited_input.requests:
        assert message_pb2.TOOL_CALL_PARSE_STATUS_SUCCEEDED == request.call.parse_status, prompt
        schemas[request.call.name].validate(json.loads(request.call.arguments_json))
    results = [
        message_pb2.ToolResult(call_id=request.call.call_id, content="42") for request in turn.awaited_input.requests
    ]
    await client.submit_turn_input(turn.turn_id, results)
    ended = await client.watch_turn(turn.turn_id).result()
    # It goes on: the model answers, or wants another call by its own choice.
    assert ended.status in {turn_pb2.TURN_STATUS_COMPLETED, turn_pb2.TURN_STATUS_AWAITING_INPUT}, prompt
    steps = [step.type for step in ended.steps]
    assert steps.count(step_pb2.STEP_TYPE_INFERENCE) >= 2, prompt


async def _required_calls(shipped: RunningMesh, prompts: list[str], at_once: int) -> None:
    async with shipped.client() as client:
        config = agent_pb2.AgentConfig(
            model=MODEL,
            tools=TOOLS,
            tool_choice=generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_REQUIRED),
            sampling_parameters=generation_pb2.SamplingParameters(max_tokens=96),
            # The forced call and one answer to its result: left alone, this small model goes on calling.
            max_iterations=2,
        )
        agent = await client.create_agent(config)
        for start in range(0, len(prompts), at_once):
            chosen = prompts[start : start + at_once]
            await asyncio.gather(*(_required_call(client, agent.agent_id, prompt) for prompt in chosen))


@pytest.mark.asyncio(loop_scope="session")
async def test_a_required_call_fits_its_schema_and_the_turn_goes_on(shipped: RunningMesh):
    await _required_calls(shipped, PROMPTS[::5], at_once=3)


@pytest.mark.bars
@pytest.mark.timeout(1200)
@pytest.mark.asyncio(loop_scope="session")
async def test_thirty_prompts_give_thirty_calls_that_fit(shipped: RunningMesh):
    assert 30 == len(PROMPTS)
    await _required_calls(shipped, PROMPTS, at_once=3)


@pytest.mark.asyncio(loop_scope="session")
async def test_a_named_choice_calls_that_tool(shipped: RunningMesh):
    async with shipped.client() as client:
        choice = generation_pb2.ToolChoice(mode=generation_pb2.ToolChoice.MODE_NAMED, name="search")
        agent = await client.create_agent(agent_pb2.AgentConfig(model=MODEL, tools=TOOLS, tool_choice=choice))
        session = await client.create_session(agent.agent_id)
        turn = await client.run_turn(session.session_id, "What is the weather in Berlin?").result()

        assert ["search"] == [request.call.name for request in turn.awaited_input.requests]


@pytest.mark.asyncio(loop_scope="session")
async def test_a_prompt_that_does_not_fit_names_both_numbers(shipped: RunningMesh):
    async with shipped.client() as client:
        session = await client.create_session("assistant")
        turn = await client.run_turn(session.session_id, "word " * 12_000).result()

        assert turn_pb2.TURN_STATUS_FAILED == turn.status
        assert int(turn.failure.metadata["prompt_tokens"]) > 12_000
        assert "8192" == turn.failure.metadata["context_tokens"]


async def _chat(shipped: RunningMesh, request: inference_service_pb2.ChatCompletionRequest) -> list[Any]:
    import grpc

    async with grpc.aio.insecure_channel(shipped.address("inference")) as channel:
        try:
            return [piece async for piece in InferenceServiceStub(channel).ChatCompletion(request, timeout=120)]
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="inference") from error


def _request(text: str, **fields: Any) -> inference_service_pb2.ChatCompletionRequest:
    message = message_pb2.Message(role=message_pb2.ROLE_USER, parts=[message_pb2.ContentPart(text=text)])
    return inference_service_pb2.ChatCompletionRequest(model=MODEL, messages=[message], **fields)


@pytest.mark.asyncio(loop_scope="session")
async def test_the_response_format_and_the_sampling_parameters_are_obeyed(shipped: RunningMesh):
    schema = '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],"additionalProperties":false}'
    greedy = generation_pb2.SamplingParameters(greedy=generation_pb2.GreedySampling(), max_tokens=40)
    form = generation_pb2.ResponseFormat(json_schema=schema)
    pieces = await _chat(shipped, _request("Give a number.", response_format=form, sampling_parameters=greedy))
    text = "".join(piece.text.text for piece in pieces)
    assert isinstance(json.loads(text)["n"], int)

    short = generation_pb2.SamplingParameters(greedy=generation_pb2.GreedySampling(), max_tokens=3)
    pieces = await _chat(shipped, _request("Tell a long story.", sampling_parameters=short))
    assert message_pb2.STOP_REASON_OUT_OF_TOKENS == pieces[-1].completed.stop_reason
    assert 3 == pieces[-1].completed.usage.completion_tokens
    assert pieces[-1].completed.timings.HasField("time_to_first_token")


@pytest.mark.asyncio(loop_scope="session")
async def test_what_the_engine_cannot_do_is_refused(shipped: RunningMesh):
    form = generation_pb2.ResponseFormat(json_schema='{"type":"nonsense"}')
    with pytest.raises(InvalidArgument):
        await _chat(shipped, _request("x", response_format=form))
    with pytest.raises(ContextLengthExceeded):
        await _chat(shipped, _request("word " * 12_000))


@pytest.mark.asyncio(loop_scope="session")
async def test_leaving_frees_the_engine(shipped: RunningMesh):
    import grpc

    async with grpc.aio.insecure_channel(shipped.address("inference")) as channel, shipped.client() as client:
        call = InferenceServiceStub(channel).ChatCompletion(_request("Tell a very long story."), timeout=120)
        async for piece in call:
            if piece.WhichOneof("payload") == "text":
                break
        call.cancel()
        while "0 open streams" not in [each.detail for each in await client.list_providers("inference")]:
            await asyncio.sleep(0.02)


@pytest.mark.everyday
@pytest.mark.asyncio(loop_scope="session")
async def test_embeddings_know_what_is_alike(shipped: RunningMesh):
    import grpc

    texts = ["A cat sits on the mat.", "A kitten rests on the rug.", "The stock market fell."]
    async with grpc.aio.insecure_channel(shipped.address("inference")) as channel:
        request = inference_service_pb2.EmbedRequest(model="all-minilm-l6-v2", texts=texts)
        response = await InferenceServiceStub(channel).Embed(request, timeout=60)
    vectors = [list(embedding.values) for embedding in response.embeddings]

    assert [384, 384, 384] == [len(vector) for vector in vectors]
    assert all(math.isclose(1.0, sum(value * value for value in vector), abs_tol=1e-3) for vector in vectors)
    alike, unlike = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
    assert alike > 0.4 > unlike + 0.2
    assert response.usage.prompt_tokens > 15
