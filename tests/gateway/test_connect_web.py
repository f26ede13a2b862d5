"""`@connectrpc/connect-web`, unchanged, runs a turn in Chromium from a page of another origin."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.gateway.browser import ROOT, browsing
from tests.gateway.edge import running_edge

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

CLIENT = ROOT / "clients" / "typescript-web"
TEXT = "Grüße aus dem Browser \U0001f600, " + "Wort " * 60
RULES = [{"contains": "hello", "text": TEXT, "tokens_per_second": 60}]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the client in a copy, as its README says, and returns its folder."""
    if shutil.which("npm") is None:
        pytest.skip("needs Node.js with npm")
    folder = tmp_path_factory.mktemp("web") / "clients" / "typescript-web"
    shutil.copytree(CLIENT, folder, ignore=shutil.ignore_patterns("node_modules", "gen", "dist"))
    (folder.parents[1] / "protos").symlink_to(ROOT / "protos")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in (["npm", "ci"], ["npm", "run", "build"]):
        ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert 0 == ran.returncode, ran.stdout + ran.stderr
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@asynccontextmanager
async def served(folder: Path) -> AsyncGenerator[str]:
    """Serves a folder on a port of its own, which is another origin than the gateway's."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        await asyncio.to_thread(thread.join)


@pytest.mark.parametrize("protocol", ["connect", "connect-json", "grpc-web"])
async def test_connect_web_runs_a_turn_and_resumes_it(built: Path, protocol: str):
    async with served(built) as origin, running_edge(rules=RULES, gateway={"allowed_origins": [origin]}) as edge:
        async with browsing() as (_, page):
            query = f"gateway={edge.url}&protocol={protocol}&agent=assistant&message=hello&cut=20"
            await page.goto(f"{origin}/index.html?{query}")
            await expect(page.locator("#state")).to_have_text("done, resumed 1 times", timeout=30_000)
            await expect(page.locator("#text")).to_have_text(TEXT.strip())
            events = await page.locator("#events li").all_inner_texts()
            failure = await page.locator("#failure").inner_text()
    assert ("turnStarted", "turnCompleted") == (events[0], events[-1])
    assert 5 < events.count("stepDelta")
    assert failure.startswith("5 There is no turn 'turn_none'."), "NOT_FOUND, as over gRPC"
    assert failure.endswith("(2 details)")


async def test_a_page_of_an_origin_that_is_not_let_in_gets_nothing(built: Path):
    async with served(built) as origin, running_edge(rules=RULES) as edge:
        async with browsing(allowed="has been blocked by CORS policy") as (_, page):
            await page.goto(f"{origin}/index.html?gateway={edge.url}&message=hello")
            await expect(page.locator("#state")).to_contain_text("failed:", timeout=30_000)
            await expect(page.locator("#text")).to_be_empty()
