"""The unchanged OpenAI SDK, and requests by hand, against the gateway."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase, CompletionCreateParamsStreaming

from tests.gateway.edge import Edge, running_edge
from turnwire_gateway.openai import fields
from turnwire_gateway.openai.asked import read
from turnwire_gateway.openai.failures import Refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.mesh

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
RULES = [
    {"after_tool": True, "text": "It is sunny in Köln."},
    {"contains": "weather", "calls": [{"name": "get_weather", "arguments": {"city": "Köln"}}]},
    {"contains": "hang", "text": "one two", "hang": True},
    {"contains": "long", "tokens": 50},
    {"contains": "broken", "text": "half an answer", "error": "PROVIDER_ERROR"},
    {"contains": "hello", "text": "Hello, world \U0001f600."},
]
HELLO: Any = [{"role": "user", "content": "hello"}]


@asynccontextmanager
async def sdk(**edge: Any) -> AsyncGenerator[tuple[openai.AsyncOpenAI, Edge]]:
    async with running_edge(rules=RULES, **edge) as running:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x" * 16, max_retries=0) as client:
            yield client, running


@asynccontextmanager
async def open_sdk(**edge: Any) -> AsyncGenerator[tuple[openai.AsyncOpenAI, Edge]]:
    """With a key that the mesh knows: the SDK always sends one."""
    keys = [{"name": "anna", "key": "x" * 16}]
    async with sdk(access={"api_keys": keys, "mesh_secret": "s" * 32}, **edge) as both:
        yield both


async def test_the_sdk_streams_a_chat_with_tools():
    async with open_sdk() as (client, _):
        messages: Any = [{"role": "user", "content": "what is the weather in Köln?"}]
        calls: dict[int, dict[str, str]] = {}
        reasons: list[str] = []
        stream = await client.chat.completions.create(
            model="scripted", messages=messages, tools=[TOOL], tool_choice="auto", stream=True
        )
        async for chunk in stream:
            choice = chunk.choices[0]
            for delta in choice.delta.tool_calls or ():
                call = calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
                assert delta.function is not None
                call["id"] += delta.id or ""
                call["name"] += delta.function.name or ""
                call["arguments"] += delta.function.arguments or ""
            if choice.finish_reason:
                reasons.append(choice.finish_reason)
        assert ["tool_calls"] == reasons
        assert ("get_weather", {"city": "Köln"}) == (calls[0]["name"], json.loads(calls[0]["arguments"]))
        called = {"id": calls[0]["id"], "type": "function"}
        called |= {"function": {"name": calls[0]["name"], "arguments": calls[0]["arguments"]}}
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "tool_call_id": calls[0]["id"], "content": "sunny"},
        ]
        text = ""
        usage: list[Any] = []
        stream = await client.chat.completions.create(
            model="scripted", messages=messages, tools=[TOOL], stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            usage.append(chunk.usage)
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert "It is sunny in Köln." == text
        assert [None] * (len(usage) - 1) == usage[:-1]
        assert usage[-1].total_tokens == usage[-1].prompt_tokens + usage[-1].completion_tokens > 0


async def test_a_mesh_without_keys_takes_whatever_key_the_sdk_has():
    async with sdk() as (client, edge):
        answer = await client.chat.completions.create(model="scripted", messages=HELLO)
        assert "Hello, world \U0001f600." == answer.choices[0].message.content
        assert [model.id async for model in client.models.list()]
        # Calls of the contract are the services' own to judge.
        headers = {"authorization": f"Bearer {'x' * 16}"}
        refused = await edge.connect("turnwire.agent.v1.AgentService/ListAgents", b"{}", "json", headers)
        assert 16 == refused.status.code


async def test_the_sdk_reads_a_whole_answer_with_tools():
    async with open_sdk() as (client, _):
        messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "weather?"}]
        answer = await client.chat.completions.create(model="scripted", messages=messages, tools=[TOOL])
        choice = answer.choices[0]
        assert ("tool_calls", None) == (choice.finish_reason, choice.message.content)
        calls: Any = choice.message.tool_calls
        assert ("get_weather", {"city": "Köln"}) == (calls[0].function.name, json.loads(calls[0].function.arguments))
        messages += [choice.message.model_dump(), {"role": "tool", "tool_call_id": calls[0].id, "content": "sunny"}]
        answer = await client.chat.completions.create(model="scripted", messages=messages, tools=[TOOL])
        assert ("stop", "It is sunny in Köln.") == (answer.choices[0].finish_reason, answer.choices[0].message.content)


async def test_the_sdk_lists_models_and_agents():
    async with open_sdk() as (client, _):
        found = {model.id: model.owned_by async for model in client.models.list()}
        assert {"scripted": "scripted", "agent:assistant": "turnwire"}.items() <= found.items()
        assert "scripted" == (await client.models.retrieve("scripted")).id
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("none")


@pytest.mark.parametrize("model", ["agent:assistant", "assistant"])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_agent_answers_as_a_model_and_leaves_nothing_behind(model: str, stream: bool):
    async with open_sdk() as (client, edge):
        messages: Any = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "hello"},
        ]
        asked: Any = {"model": model, "messages": messages, "temperature": 0, "metadata": {"k": "v"}, "user": "u"}
        if stream:
            chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            answer = await client.chat.completions.create(**asked)
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert ("Hello, world \U0001f600.", "stop") == (text, reason)
        async with edge.mesh.client(api_key="x" * 16) as mesh:
            assert [] == list((await mesh.list_sessions()).sessions)


async def test_answers_have_the_fields_of_openais_schema_and_null_only_where_it_has_it():
    async with running_edge(rules=RULES) as edge:
        whole = await _post(edge, {"model": "scripted", "messages": HELLO})
        assert {"id", "object", "created", "model", "choices", "usage"} == whole.keys()
        message = {"role": "assistant", "content": "Hello, world \U0001f600.", "refusal": None}
        expected = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
        assert expected == whole["choices"]
        body = {"model": "scripted", "messages": HELLO, "stream": True}
        async with edge.http.post(f"{edge.url}/v1/chat/completions", json=body) as response:
            assert "text/event-stream; charset=utf-8" == response.headers["content-type"]
            *events, done, rest = (await response.text()).split("\n\n")
    assert ("data: [DONE]", "") == (done, rest)
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {("id", "object", "created", "model", "choices")} == {tuple(chunk) for chunk in chunks}
    assert 1 == len({chunk["id"] for chunk in chunks})
    choices = [chunk["choices"][0] for chunk in chunks]
    assert {"role": "assistant", "content": ""} == choices[0]["delta"]
    assert ({}, "stop") == (choices[-1]["delta"], choices[-1]["finish_reason"])
    assert {None} == {choice["finish_reason"] for choice in choices[:-1]}


async def _post(edge: Edge, body: dict[str, Any]) -> Any:
    async with edge.http.post(f"{edge.url}/v1/chat/completions", json=body) as response:
        assert 200 == response.status, await response.text()
        return await response.json()


async def test_what_bounds_and_shapes_an_answer_reaches_the_model():
    async with running_edge(rules=RULES) as edge:
        asked = {"model": "scripted", "messages": [{"role": "user", "content": "long"}]}
        cut = await _post(edge, asked | {"max_completion_tokens": 5})
        assert "length" == cut["choices"][0]["finish_reason"]
        whole = await _post(edge, {"model": "scripted", "messages": HELLO})
        stopped = await _post(edge, {"model": "scripted", "messages": HELLO, "stop": ["world"]})
        assert ("Hello, ", "stop") == (
            stopped["choices"][0]["message"]["content"],
            stopped["choices"][0]["finish_reason"],
        )
        assert whole["choices"][0]["message"]["content"] != stopped["choices"][0]["message"]["content"]


def test_every_field_of_the_sdk_is_honoured_or_refused_by_name():
    known = set(CompletionCreateParamsBase.__annotations__) | set(CompletionCreateParamsStreaming.__annotations__)
    assert set(fields.Fields.__struct_fields__) == known
    honoured = known - fields.NEUTRAL.keys()
    strange: dict[str, Any] = {
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "logit_bias": {"1": 2},
        "logprobs": True,
        "modalities": ["audio"],
        "n": 2,
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "reasoning_effort": "low",
        "service_tier": "flex",
        "store": True,
        "top_logprobs": 3,
        "verbosity": "low",
    }
    for name, neutral in fields.NEUTRAL.items():
        for value in (None, *neutral):
            read(json.dumps({"model": "m", "messages": HELLO, name: value}).encode())
        with pytest.raises(Refused) as refused:
            read(json.dumps({"model": "m", "messages": HELLO, name: strange.get(name, {"a": 1})}).encode())
        assert name == refused.value.param
    assert honoured == {
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "response_format",
        "safety_identifier",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_p",
        "user",
    }


def test_what_is_honoured_becomes_our_request():
    schema = {"type": "object"}
    asked = read(
        json.dumps(
            {
                "model": "m",
                "messages": [
                    {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                    {"role": "user", "content": "c", "name": "anna"},
                ],
                "max_completion_tokens": 7,
                "temperature": 0.5,
                "top_p": 0.9,
                "seed": -3,
                "stop": "x",
                "tools": [TOOL],
                "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
                "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
                "user": "u",
                "metadata": {"k": "v"},
            }
        ).encode()
    )
    sampling = asked.sampling
    assert (7, -3, ["x"]) == (sampling.max_tokens, sampling.seed, list(sampling.stop_sequences))
    assert (0.5, 0.9) == (sampling.top_p.temperature, sampling.top_p.top_p)
    assert [["a", "b"], ["c"]] == [[part.text for part in message.parts] for message in asked.messages]
    assert ([1, 2], "anna") == ([message.role for message in asked.messages], asked.messages[1].name)
    assert asked.tool_choice is not None
    assert asked.response_format is not None
    assert ("get_weather", schema) == (asked.tool_choice.name, json.loads(asked.response_format.json_schema))
    assert TOOL["function"]["parameters"] == json.loads(asked.tools[0].parameters_json_schema)
    assert {"user": "u", "k": "v"} == asked.labels
    greedy = read(json.dumps({"model": "m", "messages": HELLO, "temperature": 0}).encode())
    assert greedy.sampling.HasField("greedy")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "color": 1}]}, "messages[0].color"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "refusal": "no", "content": "x"}]}, "messages[0].refusal"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools[0].function.strict"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.type"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_its_parameter(body: dict[str, Any], param: str):
    with pytest.raises(Refused) as refused:
        read(json.dumps({"model": "scripted", "messages": HELLO, **body}).encode())
    assert param == refused.value.param


async def test_errors_have_openais_shape_and_the_status_its_clients_go_by():
    async with open_sdk() as (client, edge):
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="scripted", messages=HELLO, n=2)
        assert ("n", "unsupported_value", "invalid_request_error") == (bad.value.param, bad.value.code, bad.value.type)
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="none", messages=HELLO, stream=True)
        assert ("model", "model_not_found") == (missing.value.param, missing.value.code)
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="agent:none", messages=HELLO)
        assert "model_not_found" == missing.value.code
        wrong = openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="wrong", max_retries=0)
        async with wrong:
            with pytest.raises(openai.AuthenticationError) as refused:
                await wrong.chat.completions.create(model="scripted", messages=HELLO)
        assert "invalid_api_key" == refused.value.code
        for agents_own in ({"tools": [TOOL]}, {"messages": [*HELLO, {"role": "assistant", "content": "x"}]}):
            asked: Any = {"model": "agent:assistant", "messages": HELLO, **agents_own}
            with pytest.raises(openai.BadRequestError) as bad:
                await client.chat.completions.create(**asked)
            assert next(iter(agents_own)) == bad.value.param
        async with edge.http.post(f"{edge.url}/v1/chat/completions", data=b"{}") as response:
            assert 415 == response.status
        headers = {"authorization": f"Bearer {'x' * 16}", "content-type": "application/json"}
        async with edge.http.post(f"{edge.url}/v1/chat/completions", data=b"{", headers=headers) as response:
            assert (400, {"error"}) == (response.status, (await response.json()).keys())


async def test_an_answer_that_breaks_off_is_no_whole_one():
    async with running_edge(rules=RULES) as edge:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "broken"}], "stream": True}
        async with edge.http.post(f"{edge.url}/v1/chat/completions", json=body) as response:
            assert 200 == response.status
            *events, last, _ = (await response.text()).split("\n\n")
        assert "half an answer" == "".join(
            json.loads(event.removeprefix("data: "))["choices"][0]["delta"].get("content", "") for event in events
        )
        assert "server_error" == json.loads(last.removeprefix("data: "))["error"]["type"]
        body["stream"] = False
        async with edge.http.post(f"{edge.url}/v1/chat/completions", json=body) as response:
            assert 500 == response.status


async def test_an_agent_that_waits_for_its_caller_says_so_and_is_not_left_waiting():
    async with running_edge(rules=RULES) as edge:
        definition = {"name": "get_weather", "parametersJsonSchema": '{"type": "object"}'}
        made = {"name": "w", "config": {"model": "scripted", "tools": [{"function": {"definition": definition}}]}}
        answer: Any = await edge.connect(
            "turnwire.agent.v1.AgentService/CreateAgent", json.dumps(made).encode(), "json"
        )
        body = {"model": answer.messages[0].agent.agent_id, "messages": [{"role": "user", "content": "weather"}]}
        async with edge.http.post(f"{edge.url}/v1/chat/completions", json=body) as response:
            told = await response.json()
            assert (400, "model") == (response.status, told["error"]["param"])
        async with edge.mesh.client() as client:
            assert [] == list((await client.list_sessions()).sessions)
