"""Chromium for tests: the system's, without a window, and nothing of it reaches out."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ROOT = Path(__file__).resolve().parents[2]
# Playwright's own five seconds are short where the services and Chromium share two cores.
expect.set_options(timeout=20_000)
SCREENSHOTS = Path(os.environ.get("TURNWIRE_SCREENSHOTS", ROOT / ".turnwire" / "screenshots"))
"""Where pictures of the console are kept, to be looked at."""


def chromium() -> str:
    """Returns the path of Chromium; installs Debian's where that is possible, as `./dev` does with what it needs."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "chromium"]):
            subprocess.run(["apt-get", *command], env=environment, stdout=subprocess.DEVNULL, check=True)
        found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs Chromium: sudo apt-get install -y chromium")
    return found


@asynccontextmanager
async def browsing(*, allowed: str = "", **context: Any) -> AsyncGenerator[tuple[Browser, Page]]:
    """Gives a browser and a page of it; arguments are those of Playwright's `new_context`.

    A page that logs an error, or throws one, fails the test, but for errors that hold `allowed`.
    """
    problems: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        try:
            page = await (await browser.new_context(**context)).new_page()
            page.on("pageerror", lambda error: problems.append(str(error)))
            # An answer that is an error is logged as one, too: the page has to tell of it, and tests look there.
            page.on("console", lambda said: problems.append(said.text) if _is_problem(said) else None)
            yield browser, page
        finally:
            await browser.close()
    assert [] == [problem for problem in problems if not allowed or allowed not in problem]


def _is_problem(said: Any) -> bool:
    return said.type == "error" and not said.text.startswith("Failed to load resource")


async def keep(page: Page, name: str) -> None:
    """Keeps a picture of the page."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png")
