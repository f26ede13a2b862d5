"""Searches at the fakes of four makers, held to one suite; and what they answer when they do not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.search_servers import KEY, fake_search
from tests.tool_executor.calling import executor_of, searching
from turnwire.common.v1 import error_pb2, generation_pb2
from turnwire.errors import Ambiguous
from turnwire.runtime.settings import Settings
from turnwire.tool_executor import attempts
from turnwire.tool_executor.tools import problems
from turnwire.tool_executor.v1 import tool_service_pb2

pytestmark = [pytest.mark.mesh, pytest.mark.usefixtures("at_once")]
MAKERS = ("brave", "bing", "tavily", "searxng")
QUERY = {"query": "turnwire"}
RESULTS = [
    {"title": "Turnwire & gRPC", "url": "https://example.org/turnwire", "snippet": "A mesh of services."},
    {"title": "Zweite Seite", "url": "https://example.org/zwei", "snippet": "Grüße aus der Küche"},
    {"title": "https://example.org/nameless", "url": "https://example.org/nameless", "snippet": "x" * 599 + "…"},
]


@pytest.mark.parametrize("maker", MAKERS)
async def test_results_have_one_form(maker: str):
    async with fake_search() as fake, executor_of(searching(fake, maker)) as executor:
        ran = await executor.run("web_search", QUERY)
        none = await executor.run("web_search", {"query": "nothing"}, "call_2")

    assert {"query": "turnwire", "results": RESULTS} == json.loads(ran.result.content)
    assert {"query": "nothing", "results": []} == json.loads(none.result.content)


@pytest.mark.parametrize("maker", MAKERS)
async def test_the_settings_of_a_tool_reach_the_maker(maker: str):
    schema = '{"type":"object","properties":{"query":{"type":"string"}},"required":["query"]}'
    request = tool_service_pb2.RegisterToolRequest(
        tool_id="docs",
        config_json='{"max_results": 2, "site": "docs.python.org"}',
        definition=generation_pb2.ToolDefinition(name="docs", parameters_json_schema=schema),
        idempotent=True,
    )
    async with fake_search() as fake, executor_of(searching(fake, maker)) as executor:
        registered = (await executor.call("RegisterTool", request)).tool
        ran = await executor.run("docs", {"query": "asyncio"})

    (asked,) = fake.requests
    text = asked["body"].get("query") or asked["query"]["q"]
    assert "asyncio site:docs.python.org" == text
    assert "Searches the web." == registered.definition.description
    assert RESULTS[:2] == json.loads(ran.result.content)["results"]
    if maker != "searxng":
        assert 2 == int(asked["query"].get("count") or asked["body"]["max_results"])


@pytest.mark.parametrize("maker", ["brave", "bing", "tavily"])
async def test_a_key_that_is_refused_is_named_so_and_not_told(maker: str, capfd: pytest.CaptureFixture[str]):
    wrong = "a-key-that-is-wrong"
    async with fake_search() as fake, executor_of(searching(fake, maker, api_key=wrong)) as executor:
        ran = await executor.run("web_search", QUERY)
        # The caller's own credential goes before the service's.
        own = await executor.run("web_search", QUERY, "call_2", authorization=KEY)

    assert error_pb2.ERROR_REASON_PROVIDER_UNAUTHENTICATED == ran.reason
    assert "api_key" in ran.result.failure.message
    assert 3 == len(json.loads(own.result.content)["results"])
    logged = capfd.readouterr()
    for secret in (wrong, KEY):
        assert secret not in str(ran.result) + logged.out + logged.err


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("behaviour", "reason", "words"),
    [
        ("429", error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED, "slow down"),
        ("500", error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE, "HTTP 500"),
        ("400", error_pb2.ERROR_REASON_PROVIDER_ERROR, "HTTP 400"),
        ("moved", error_pb2.ERROR_REASON_PROVIDER_ERROR, "base_url"),
        ("garbage", error_pb2.ERROR_REASON_PROVIDER_ERROR, "no JSON"),
        ("odd", error_pb2.ERROR_REASON_PROVIDER_ERROR, "no list"),
        ("huge", error_pb2.ERROR_REASON_PROVIDER_ERROR, "more than"),
    ],
)
async def test_answers_that_are_none(
    maker: str, behaviour: str, reason: int, words: str, capfd: pytest.CaptureFixture[str]
):
    async with fake_search() as fake, executor_of(searching(fake, maker)) as executor:
        fake.script = [behaviour] * attempts.MAX_ATTEMPTS
        ran = await executor.run("web_search", QUERY)

    assert reason == ran.reason
    assert words in ran.result.failure.message
    assert maker == ran.result.failure.metadata["provider_id"]
    # A searxng has no key; what it says is told as it is.
    if maker != "searxng":
        logged = capfd.readouterr()
        assert KEY not in str(ran.result) + logged.out + logged.err


@pytest.mark.parametrize("status", ["432", "433"])
async def test_a_plan_of_tavily_that_is_used_up_is_a_rate_limit(status: str):
    async with fake_search() as fake, executor_of(searching(fake)) as executor:
        fake.script = [status] * attempts.MAX_ATTEMPTS
        ran = await executor.run("web_search", QUERY)

    assert error_pb2.ERROR_REASON_PROVIDER_RATE_LIMITED == ran.reason


async def test_a_searxng_without_json_says_which_setting_is_missing():
    async with fake_search() as fake, executor_of(searching(fake, "searxng")) as executor:
        fake.script = ["403"]
        ran = await executor.run("web_search", QUERY)

    assert error_pb2.ERROR_REASON_PROVIDER_ERROR == ran.reason
    assert "formats: [html, json]" in ran.result.failure.message


async def test_a_maker_that_is_away_is_unavailable():
    async with fake_search() as fake:
        provider = searching(fake)
    async with executor_of(provider) as executor:
        ran = await executor.run("web_search", QUERY)

    assert error_pb2.ERROR_REASON_PROVIDER_UNAVAILABLE == ran.reason
    assert ran.result.failure.retryable


async def test_two_makers_are_told_apart_by_their_providers():
    async with fake_search() as fake, executor_of(searching(fake, "brave"), searching(fake, "bing")) as executor:
        with pytest.raises(Ambiguous):
            await executor.run("web_search", QUERY)
        await executor.run("bing/web_search", QUERY)

    assert "Ocp-Apim-Subscription-Key".lower() in {name.lower() for name in fake.requests[0]["headers"]}


@pytest.mark.parametrize(
    ("kind", "config", "key"),
    [
        ("remote::brave-search", {}, "api_key"),
        ("remote::tavily-search", {"api_key": "k", "topic": "gossip"}, "topic"),
        ("remote::searxng", {"base_url": "http://x", "max_results": 0}, "max_results"),
        ("remote::bing-search", {"api_key": "k", "colour": "red"}, "colour"),
        ("remote::wolfram-alpha", {}, "api_key"),
        ("remote::openai-images", {"size": "large"}, "size"),
        ("inline::code-interpreter", {"engine": "x"}, "engine"),
    ],
)
def test_settings_that_are_wrong_are_named(kind: str, config: dict[str, Any], key: str):
    provider = {"provider_id": "x", "provider_type": kind, "config": config}
    settings = Settings.model_validate({"providers": {"tool_executor": [provider]}})

    assert [("providers", "tool_executor", 0, "config", key)] == [place for place, _ in problems(settings)]
