"""What was recorded is answered again, piece by piece; what was not says what is nearest."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.mesh.asking import events_of, session_of, weather_tool
from turnwire.agent.v1 import agent_pb2, turn_pb2
from turnwire.client.client import user_message
from turnwire.common.v1 import error_pb2, message_pb2
from turnwire.errors import InvalidArgument, ProviderError, ProviderRateLimited, from_rpc_error
from turnwire.inference import providers
from turnwire.inference.v1 import inference_service_pb2
from turnwire.testing.mesh import running_mesh
from turnwire.testing.recording import Recording, RecordingError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from turnwire.client import Client

KEY = "sk-0123456789-very-secret"
RULES: list[dict[str, Any]] = [
    {
        "contains": "weather",
        "after_tool": False,
        "reasoning": "I have to ask.",
        "text": "Let me see … ",
        "calls": [
            {"name": "get_weather", "arguments": {"city": "Zürich"}},
            {"name": "get_weather", "arguments": {"city": "東京"}},
        ],
    },
    {"after_tool": True, "pieces": ["It ", "is\n", "", "sunny ☀."]},
    {"contains": "dice", "text": "one", "times": 1},
    {"contains": "dice", "text": "two", "times": 1},
    {"contains": "dice", "text": "three"},
    {"contains": "limit", "text": "half", "error": "PROVIDER_RATE_LIMITED"},
    {"contains": "hang", "text": "half", "hang": True},
    {"contains": "key", "text": f"It is {KEY}."},
]


@asynccontextmanager
async def recording(path: Path, **upstream: Any) -> AsyncGenerator[Client]:
    """Gives a client of a mesh whose model is recorded."""
    config = {
        "path": str(path),
        "mode": "record",
        "upstream": {"provider_type": "inline::scripted", "config": {"rules": RULES}, **upstream},
    }
    async with _mesh(config) as client:
        yield client


@asynccontextmanager
async def replaying(path: Path, **config: Any) -> AsyncGenerator[Client]:
    """Gives a client of a mesh that only the file answers."""
    async with _mesh({"path": str(path), **config}) as client:
        yield client


@asynccontextmanager
async def _mesh(config: dict[str, Any]) -> AsyncGenerator[Client]:
    provider = {"provider_id": "replay", "provider_type": "inline::replay", "config": config}
    async with running_mesh(providers={"inference": [provider]}) as mesh, mesh.client() as client:
        yield client


async def _pieces(client: Client, *said: str, model: str = "scripted", **fields: Any) -> list[bytes]:
    """Returns the pieces of an answer as they travelled, without the times, which are measured anew."""
    request = inference_service_pb2.ChatCompletionRequest(
        model=model, messages=[user_message(text) for text in said], **fields
    )
    pieces: list[bytes] = []
    try:
        async for piece in client.inference_stub.ChatCompletion(request, timeout=30):
            piece.completed.ClearField("timings") if piece.HasField("completed") else None
            pieces.append(piece.SerializeToString(deterministic=True))
    except grpc.RpcError as error:
        raise from_rpc_error(error, service="inference") from error
    return pieces


async def _weather(client: Client) -> tuple[turn_pb2.Turn, list[str]]:
    """Runs a turn with two calls of the caller's function; returns it, and all that its deltas said."""
    session = await session_of(client, tools=[weather_tool()], instructions="Be brief.")
    stream = client.run_turn(session, "the weather?", tools={"get_weather": lambda city: f"sunny in {city}"})
    said = [event.step_delta.text async for event in stream if event.HasField("step_delta")]
    return stream.turn, said


def _essence(turn: turn_pb2.Turn) -> list[Any]:
    """What of a turn is no id and no time."""
    steps: list[Any] = []
    for step in turn.steps:
        calls = [(call.name, call.arguments_json, call.parse_status) for call in step.inference.tool_calls]
        results = [execution.result.content for execution in step.tool_execution.executions]
        usage = step.inference.usage.SerializeToString()
        steps.append((step.type, step.inference.text, step.inference.reasoning, calls, results, usage))
    return [turn.status, [part.text for part in turn.output.parts], steps]


async def test_a_turn_with_tools_is_replayed_as_it_was_recorded(tmp_path: Path):
    path = tmp_path / "recordings" / "weather.jsonl"
    async with recording(path) as client:
        recorded, deltas = await _weather(client)
    assert turn_pb2.TURN_STATUS_COMPLETED == recorded.status
    async with replaying(path) as client:
        replayed, again = await _weather(client)

    assert _essence(recorded) == _essence(replayed)
    assert "It is\nsunny ☀." == replayed.output.parts[0].text
    assert "".join(deltas) == "".join(again)
    assert recorded.turn_id != replayed.turn_id


async def test_the_pieces_of_an_answer_are_equal_byte_by_byte_and_in_order(tmp_path: Path):
    path = tmp_path / "pieces.jsonl"
    tools = [weather_tool().function.definition]
    async with recording(path) as client:
        recorded = await _pieces(client, "the weather?", tools=tools)
    async with replaying(path) as client:
        assert recorded == await _pieces(client, "the weather?", tools=tools)
    assert len(recorded) > 8


async def test_however_a_model_is_addressed_its_recording_is_found(tmp_path: Path):
    path = tmp_path / "names.jsonl"
    async with recording(path) as client:
        recorded = await _pieces(client, "hello", model="replay/scripted")
    async with replaying(path) as client:
        await client.register_model("mine", provider_model_id="scripted")
        # Only which model answers is told by its name here; the first piece says it.
        assert recorded[1:] == (await _pieces(client, "hello", model="mine"))[1:]


async def test_the_same_request_is_answered_in_the_recorded_order(tmp_path: Path):
    path = tmp_path / "dice.jsonl"
    async with recording(path) as client:
        recorded = [await _pieces(client, "dice") for _ in range(3)]
    assert recorded[0] != recorded[1] != recorded[2]
    async with replaying(path) as client:
        assert recorded == [await _pieces(client, "dice") for _ in range(3)]
        with pytest.raises(ProviderError, match=r"recorded 3 times and is asked once more.*repeat: true"):
            await _pieces(client, "dice")
    async with replaying(path, repeat=True) as client:
        assert [*recorded, recorded[2]] == [await _pieces(client, "dice") for _ in range(4)]


async def test_recording_adds_to_the_file(tmp_path: Path):
    path = tmp_path / "dice.jsonl"
    recorded: list[list[bytes]] = []
    for said in ("hello", "good bye"):
        async with recording(path) as client:
            recorded.append(await _pieces(client, said))
    assert [1, 2] == [exchange.number for exchange in Recording.read(path).exchanges]
    async with replaying(path) as client:
        assert recorded[::-1] == [await _pieces(client, "good bye"), await _pieces(client, "hello")]


async def test_an_error_is_replayed_after_what_came_before_it(tmp_path: Path):
    path = tmp_path / "limit.jsonl"
    errors: list[ProviderRateLimited] = []
    async with recording(path) as client:
        with pytest.raises(ProviderRateLimited) as raised:
            await _pieces(client, "limit")
        errors.append(raised.value)
    async with replaying(path) as client:
        with pytest.raises(ProviderRateLimited) as raised:
            await _pieces(client, "limit")
        errors.append(raised.value)
    assert errors[0].message == errors[1].message
    assert errors[0].metadata == errors[1].metadata
    (exchange,) = Recording.read(path).exchanges
    assert "half" == exchange.responses[0]["text"]["text"]


async def test_when_to_come_back_is_kept(tmp_path: Path):
    path = tmp_path / "limit.jsonl"
    failure = ProviderRateLimited("gpu", "slow down", retry_after=7.5).to_failure()
    exchange = {
        "exchange": 1,
        "kind": "chat",
        "request": {"model": "m"},
        "responses": [],
        "failure": {"reason": error_pb2.ErrorReason.Name(failure.reason), "message": failure.message},
        "retry_after": 7.5,
    }
    _write(path, [exchange])
    error = Recording.read(path).exchanges[0].error()
    assert isinstance(error, ProviderRateLimited)
    assert 7.5 == error.retry_after


async def test_what_was_never_asked_names_the_nearest_and_how_to_record(tmp_path: Path):
    path = tmp_path / "nearest.jsonl"
    async with recording(path) as client:
        await _pieces(client, "Who wrote Faust?", "And when?")
        await _pieces(client, "dice")
    async with replaying(path) as client:
        with pytest.raises(ProviderError) as raised:
            await _pieces(client, "Who wrote Faust?", "And where?")
        text = raised.value.message
        assert "The nearest is exchange 1: messages[1].parts[0].text was 'And when?' and is 'And where?'" in text
        assert "mode: record" in text
        assert str(path) in text
        message = user_message("dice")
        message.name = "Ann"
        request = inference_service_pb2.ChatCompletionRequest(model="scripted", messages=[message])
        with pytest.raises(ProviderError, match=r"messages\[0\]\.name was not there and is 'Ann'"):
            await _asked(client, request)

        session = (await client.create_session((await _agent(client)).agent_id)).session_id
        turn = await client.run_turn(session, "something else").result()
        assert error_pb2.ERROR_REASON_PROVIDER_ERROR == turn.failure.reason
        assert "nearest" in turn.failure.message
        # No retry: the file will not know it later either.
        assert 1 == turn.steps[0].attempt


async def _agent(client: Client) -> agent_pb2.Agent:
    return await client.create_agent(agent_pb2.AgentConfig(model="scripted"))


async def _asked(client: Client, request: inference_service_pb2.ChatCompletionRequest) -> None:
    try:
        async for _ in client.inference_stub.ChatCompletion(request, timeout=30):
            pass
    except grpc.RpcError as error:
        raise from_rpc_error(error, service="inference") from error


@pytest.mark.parametrize(
    "change",
    [
        {"sampling_parameters": {"max_tokens": 5}},
        {"tools": [{"name": "f"}]},
        {"tool_prompt_format": "TOOL_PROMPT_FORMAT_JSON"},
        {"response_format": {"json_schema": "{}"}},
        {"tools": [{"name": "f"}], "tool_choice": {"mode": "MODE_NONE"}},
    ],
    ids=lambda change: "+".join(change),
)
async def test_all_of_a_request_tells_it_from_others(tmp_path: Path, change: dict[str, Any]):
    from google.protobuf import json_format

    path = tmp_path / "all.jsonl"
    async with recording(path) as client:
        await _pieces(client, "hello")
    changed = json_format.ParseDict(change, inference_service_pb2.ChatCompletionRequest())
    changed.model = "scripted"
    changed.messages.append(user_message("hello"))
    async with replaying(path) as client:
        with pytest.raises(ProviderError, match=next(iter(change))):
            await _asked(client, changed)


async def test_an_answer_that_its_caller_left_is_not_recorded(tmp_path: Path):
    path = tmp_path / "left.jsonl"
    async with recording(path) as client:
        async with client.run_turn(await session_of(client), "please hang") as stream:
            async for event in stream:
                if event.HasField("step_delta"):
                    break
        await client.cancel_turn(stream.turn_id)
        await _pieces(client, "hello")
    assert ["hello"] == [
        exchange.request["messages"][-1]["parts"][0]["text"] for exchange in Recording.read(path).exchanges
    ]


async def test_a_recording_holds_no_key(tmp_path: Path):
    """The model says the key, and the upstream's error repeats it; neither gets into the file."""
    path = tmp_path / "key.jsonl"
    provider = providers.build(
        "replay",
        "inline::replay",
        {
            "path": str(path),
            "mode": "record",
            "upstream": {
                "provider_type": "remote::openai",
                "config": {"base_url": "http://127.0.0.1:9/v1", "api_key": KEY},
            },
        },
    )
    from turnwire.testing.replay import ReplayProvider
    from turnwire.testing.scripted import ScriptedProvider

    assert isinstance(provider, ReplayProvider)
    scripted = ScriptedProvider("replay", ScriptedProvider.Config.model_validate({"rules": RULES}))
    provider._upstream = scripted
    (model,) = await scripted.models()
    request = inference_service_pb2.ChatCompletionRequest(model="scripted", messages=[user_message("your key?")])
    said = "".join([piece.text.text async for piece in provider.chat(model, request)])

    assert f"It is {KEY}." == said
    text = path.read_text()
    assert KEY not in text
    assert "[secret]" in text


async def test_the_recorded_models_are_served_as_they_were(tmp_path: Path):
    path = tmp_path / "models.jsonl"
    async with recording(path, config={"models": ["scripted", "other"], "context_tokens": 99}) as client:
        await _pieces(client, "hello")
        recorded = await client.get_model("scripted")
    async with replaying(path) as client:
        assert recorded == await client.get_model("scripted")
        # Of a model that was never asked nothing is known.
        assert ["scripted"] == [model.model_id for model in (await client.list_models()).models]


async def test_counts_and_continuations_are_recorded_too(tmp_path: Path):
    path = tmp_path / "kinds.jsonl"

    async def all_of(client: Client) -> list[Any]:
        request = inference_service_pb2.CompletionRequest(model="scripted", prompt="once upon a time")
        pieces = [piece async for piece in client.inference_stub.Completion(request, timeout=30)]
        return [await client.count_tokens("scripted", "one two three"), pieces]

    async with recording(path) as client:
        recorded = await all_of(client)
    async with replaying(path) as client:
        assert recorded == await all_of(client)
        with pytest.raises(ProviderError, match="count_tokens"):
            await client.count_tokens("scripted", "four")


HEADER = {"turnwire_recording": 1}


def _write(path: Path, lines: Sequence[Any], header: Any = HEADER) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read.*mode: record"),
        ("", "is empty"),
        ('{"turnwire_recording": 2}\n', "does not begin with"),
        ('{"turnwire_recording": 1}\nnot json\n', "line 2 of"),
        ('{"turnwire_recording": 1}\n\n{"exchange": 1, "kind": "chat"}\n', "line 3 of"),
        ('{"turnwire_recording": 1}\n{"model": {"context_tokens": "many"}}\n', "line 2 of"),
    ],
    ids=["missing", "empty", "other format", "no JSON", "no request", "no number"],
)
async def test_a_file_that_is_no_recording_is_refused_by_place(tmp_path: Path, text: str | None, said: str):
    path = tmp_path / "broken.jsonl"
    if text is not None:
        path.write_text(text)
    provider = providers.build("replay", "inline::replay", {"path": str(path)})
    with pytest.raises(InvalidArgument, match=f"(?s){said}"):
        await provider.start()
    with pytest.raises(RecordingError):
        Recording.read(path)


def test_lines_of_a_later_version_are_skipped(tmp_path: Path):
    path = tmp_path / "later.jsonl"
    _write(path, [{"weather": "fine"}, {"model": {"model_id": "m", "colour": "red"}}])
    found = Recording.read(path)
    assert ["m"] == [model.model_id for model in found.models]


def test_recording_without_an_upstream_is_refused():
    with pytest.raises(InvalidArgument, match="upstream"):
        providers.build("replay", "inline::replay", {"path": "x", "mode": "record"})


async def test_replayed_turns_have_the_events_of_recorded_ones(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    async with recording(path) as client:
        recorded = await events_of(client, await session_of(client), "hello there")
    async with replaying(path) as client:
        replayed = await events_of(client, await session_of(client), "hello there")
    kinds = [[event.WhichOneof("payload") for event in events] for events in (recorded, replayed)]
    assert {"turn_started", "step_started", "step_delta", "step_completed", "turn_completed"} == set(kinds[1])
    assert [kind for kind in kinds[0] if kind != "step_delta"] == [kind for kind in kinds[1] if kind != "step_delta"]
    assert message_pb2.STOP_REASON_END_OF_TURN == replayed[-2].step_completed.inference.stop_reason
