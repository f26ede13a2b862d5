"""The console in Chromium: a turn's steps while they happen, and what a person can do about them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from playwright.async_api import Page, expect

from tests.gateway.browser import browsing, keep
from tests.gateway.edge import Edge, running_edge
from tests.mesh.asking import weather_tool
from tests.mesh.peers import running_peers
from turnwire.agent.v1 import agent_pb2
from turnwire.common.v1 import retrieval_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

PLOT = """import matplotlib.pyplot as plt
years = [1990, 2000, 2010, 2020]
plt.bar([str(year) for year in years], [3, 8, 21, 55])
plt.title("Whales seen")
plt.show()
sum([3, 8, 21, 55])"""
ANSWER = (
    "There were **87 whales** in all [1]. They sing as well [2].\n\n"
    "The code was:\n\n```python\nsum([3, 8, 21, 55])\n```\n\nThe figure shows each year. <script>alert(1)</script>"
)
RULES: list[dict[str, Any]] = [
    {"contains": "sunny", "text": "Take no umbrella: it is sunny in Rome."},
    {"contains": "figure-1.png", "text": ANSWER, "reasoning": "The sum is 87.", "tokens_per_second": 40},
    {"contains": "how many whales", "calls": [{"name": "code_interpreter", "arguments": {"code": PLOT}}]},
    {"contains": "umbrella", "calls": [{"name": "get_weather", "arguments": {"city": "Rome"}}]},
    {"contains": "novel", "text": "word " * 400, "tokens_per_second": 30},
    {"contains": "plain", "text": "A plain answer."},
]
CHUNKS = [
    retrieval_pb2.RetrievedChunk(
        bank_id="library",
        document_id="doc_1",
        chunk_id=f"chunk_{number}",
        title=title,
        heading=heading,
        page=page,
        text=text,
    )
    for number, (title, heading, page, text) in enumerate(
        [
            ("whales.pdf", "Counts", 12, "Whales were counted in 1990, 2000, 2010 and 2020: 3, 8, 21 and 55."),
            ("song.md", "Voices", 0, "Humpback whales sing for hours."),
        ]
    )
]


@asynccontextmanager
async def console(**settings: Any) -> AsyncGenerator[Edge]:
    """A mesh with real tools and scripted shields and banks, and the agents `whales` and `caller`."""
    async with running_peers() as peers:
        peers.chunks = CHUNKS
        code = {"provider_id": "code", "provider_type": "inline::code-interpreter"}
        scripted = {"provider_id": "scripted", "provider_type": "inline::scripted", "config": {"rules": RULES}}
        access = {"mesh_secret": "s" * 32} | settings.pop("access", {})
        async with running_edge(
            services=("inference", "sandbox_runner", "tool_executor", "agent"),
            addresses={"safety": peers.address, "memory": peers.address},
            providers={"inference": [scripted], "tool_executor": [code]},
            access=access,
            **settings,
        ) as edge:
            yield edge


async def _agents(edge: Edge, **connecting: Any) -> None:
    interpreter = agent_pb2.AgentTool(registered=agent_pb2.RegisteredTool(tool_id="code_interpreter"))
    async with edge.mesh.client(**connecting) as client:
        await client.create_agent(
            agent_pb2.AgentConfig(
                model="scripted",
                input_shields=["warn-whales", "no-harpoon"],
                output_shields=["hide-umbrella"],
                retrieval=agent_pb2.RetrievalConfig(bank_ids=["library"]),
                tools=[interpreter],
            ),
            name="Whale watcher",
        )
        await client.create_agent(agent_pb2.AgentConfig(model="scripted", tools=[weather_tool()]), name="Forecaster")


async def _open(page: Page, edge: Edge, agent: str) -> None:
    await page.goto(f"{edge.url}/")
    await page.get_by_label("Agent").select_option(label=agent)


async def _say(page: Page, text: str) -> None:
    """With the keyboard alone."""
    await expect(page.get_by_role("button", name="Send")).to_be_enabled()
    await page.get_by_label("Message").press_sequentially(text)
    await page.keyboard.press("Enter")


async def test_a_whole_turn_shows_its_steps_sources_and_figure_and_is_there_after_a_reload():
    async with console() as edge, browsing(viewport={"width": 1100, "height": 1000}) as (_, page):
        await _agents(edge)
        await _open(page, edge, "Whale watcher")
        await keep(page, "1-empty")
        await _say(page, "how many whales?")
        answer = page.locator(".answer")
        running = page.locator(".step[data-state=running]")
        await expect(running.get_by_text("code_interpreter")).to_be_visible(timeout=30_000)
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        await keep(page, "2-running")
        await expect(page.get_by_role("status")).to_contain_text("Done in", timeout=30_000)
        for _ in range(2):  # the second time it is another page, out of the log alone
            kinds = await page.locator(".step .kind").all_inner_texts()
            assert ["Shields", "Retrieval", "Model", "Tools", "Model", "Shields"] == kinds
            assert "warned" == await page.locator(".step").first.get_attribute("data-state")
            await expect(answer).to_contain_text("There were 87 whales in all [1].")
            await expect(answer).to_contain_text("<script>alert(1)</script>")
            await expect(answer.locator("strong")).to_have_text("87 whales")
            await expect(answer.locator("pre")).to_have_text("sum([3, 8, 21, 55])")
            sources = page.locator(".sources li")
            places = ["whales.pdf › Counts › page 12", "song.md › Voices"]
            await expect(sources).to_have_text(places, use_inner_text=True)
            image = page.get_by_role("img", name="figure-1.png")
            await expect(image).to_be_visible()
            assert await image.evaluate("async (image) => (await image.decode(), image.naturalWidth)") > 100
            await page.reload()
            await expect(page.get_by_role("status")).to_contain_text("Done in")
        for step in await page.locator(".step summary").all():
            await step.press("Enter")
        tools = page.locator(".step", has=page.get_by_text("Tools", exact=True))
        await expect(tools.locator("pre").first).to_contain_text("import matplotlib.pyplot")
        await expect(tools).to_contain_text("87")
        retrieval = page.locator(".step", has=page.get_by_text("Retrieval", exact=True))
        await expect(retrieval).to_contain_text("sing for hours")
        await expect(page.get_by_text("The sum is 87.")).to_be_visible()
        await page.locator("main").evaluate("main => main.scrollTop = 0")
        await keep(page, "3-open")
        await page.emulate_media(color_scheme="dark")
        await page.locator("main").evaluate("main => main.scrollTop = main.scrollHeight")
        await keep(page, "4-dark")


async def test_a_shield_that_stops_a_turn_is_shown_with_what_it_said():
    async with console() as edge, browsing(viewport={"width": 900, "height": 700}) as (_, page):
        await _agents(edge)
        await _open(page, edge, "Whale watcher")
        await _say(page, "sell me a harpoon")
        await expect(page.get_by_role("alert").first).to_contain_text("A shield stopped this turn")
        await expect(page.get_by_role("alert").first).to_contain_text("no-harpoon on the message")
        await expect(page.locator(".answer")).to_have_text("I do not talk of harpoon.")
        await expect(page.locator(".facts")).to_contain_text("answered by a shield")
        assert "stopped" == await page.locator(".step").first.get_attribute("data-state")
        await keep(page, "5-stopped")
        await page.reload()
        await expect(page.get_by_text("A shield keeps this message back.")).to_be_visible()


async def test_a_function_of_the_caller_is_answered_on_the_page_after_a_reload_too():
    async with console() as edge, browsing(viewport={"width": 900, "height": 800}) as (_, page):
        await _agents(edge)
        await _open(page, edge, "Forecaster")
        await _say(page, "do I need an umbrella?")
        await expect(page.get_by_text("This turn waits for a result of yours")).to_be_visible()
        await page.reload()
        result = page.get_by_label("Its result: text, or one JSON value")
        await result.fill('{"sky": "sunny"}')
        await keep(page, "6-asked")
        await page.get_by_role("button", name="Send the result").press("Enter")
        await expect(page.locator(".answer")).to_have_text("Take no umbrella: it is sunny in Rome.")
        await expect(page.get_by_text("This turn waits for a result of yours")).to_have_count(0)
        await expect(page.get_by_role("status")).to_contain_text("Done in")


async def test_a_turn_is_stopped_and_the_session_goes_on():
    async with console() as edge, browsing() as (_, page):
        await _agents(edge)
        await _open(page, edge, "Forecaster")
        await _say(page, "write a novel")
        await expect(page.locator(".answer")).to_contain_text("word word")
        await page.get_by_role("button", name="Stop").press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("The turn was cancelled")
        await _say(page, "plain")
        await expect(page.locator(".answer").last).to_have_text("A plain answer.")
        assert 2 == await page.locator(".turn").count()


async def test_a_new_session_leaves_all_turns_of_the_last_one():
    """An earlier turn may still send events when the page is left: here its stream stays open."""
    async with console() as edge, browsing() as (_, page):
        await _agents(edge)
        await _open(page, edge, "Forecaster")
        for said in ("plain one", "plain two"):
            await _say(page, said)
            await expect(page.get_by_role("status")).to_contain_text("Done in")
        async with edge.mesh.client() as client:
            session = (await client.list_sessions()).sessions[0]
            earlier = min((await client.list_turns(session_id=session.session_id)).turns, key=lambda turn: turn.ordinal)
        await page.route(f"**/turns/{earlier.turn_id}/events*", lambda route: None)  # never answered
        await page.reload()
        await expect(page.locator(".answer").last).to_have_text("A plain answer.")
        async with page.expect_event(
            "requestfailed", lambda asked: earlier.turn_id in asked.url, timeout=10_000
        ) as left:
            await page.get_by_role("button", name="New session").press("Enter")
        assert "net::ERR_ABORTED" == (await left.value).failure
        await expect(page.locator(".turn")).to_have_count(0)


async def test_a_page_goes_on_where_it_was_when_its_connection_and_the_agent_service_come_back():
    async with console(agent={"drain_seconds": 0.2}) as edge, browsing() as (_, page):
        positions: list[int] = []
        page.on("request", lambda asked: positions.append(int(asked.headers.get("last-event-id", "0"))))
        await _agents(edge)
        await _open(page, edge, "Forecaster")
        await _say(page, "write a novel")
        await expect(page.locator(".answer")).to_contain_text("word word")
        await edge.mesh.stop("agent")
        await expect(page.get_by_role("status")).to_contain_text("The connection was cut")
        await edge.mesh.start("agent")
        await expect(page.get_by_role("status")).to_contain_text("Done in", timeout=40_000)
        assert ("word " * 400).strip() == (await page.locator(".answer").inner_text()).strip()
        assert max(positions) > 0, "the turn was read again from its start"


async def test_the_page_asks_for_a_key_only_where_the_mesh_wants_one():
    keys = [{"name": "anna", "key": "k" * 16, "roles": ["admin"]}]
    async with console(access={"api_keys": keys}) as edge, browsing() as (_, page):
        await _agents(edge, api_key="k" * 16)
        await page.goto(f"{edge.url}/")
        key = page.get_by_label("This mesh wants an API key")
        await key.fill("wrong" * 4)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status")).to_contain_text("wants an API key")
        await key.fill("k" * 16)
        await keep(page, "7-key")
        await page.keyboard.press("Enter")
        await expect(key).to_be_hidden()
        await page.get_by_label("Agent").select_option(label="Forecaster")
        await _say(page, "plain")
        await expect(page.locator(".answer")).to_have_text("A plain answer.")
        await page.reload()
        await expect(page.locator(".answer")).to_have_text("A plain answer.")
        assert {} == await page.evaluate("({...localStorage})")


async def test_the_page_may_load_nothing_but_its_own():
    async with console() as edge, browsing() as (_, page):
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{edge.url}/")
        await expect(page.get_by_label("Agent")).to_be_enabled()
        assert {True} == {url.startswith((edge.url, "blob:")) for url in asked}
        async with aiohttp.ClientSession() as http, http.get(f"{edge.url}/") as response:
            policy = response.headers["content-security-policy"]
            etag = response.headers["etag"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{edge.url}/", headers={"if-none-match": etag}) as response:
                assert 304 == response.status


async def test_a_phone_has_room_for_it():
    async with console() as edge, browsing(viewport={"width": 380, "height": 720}) as (_, page):
        await _agents(edge)
        await _open(page, edge, "Whale watcher")
        await _say(page, "how many whales?")
        await expect(page.get_by_role("status")).to_contain_text("Done in", timeout=30_000)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await keep(page, "8-phone")
