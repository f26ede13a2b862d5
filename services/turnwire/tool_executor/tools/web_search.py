"""What all providers of `web_search` share: the tool, its settings, and results in one form."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from turnwire.common.v1 import inspect_service_pb2
from turnwire.errors import ProviderError
from turnwire.tool_executor.limits import Limits
from turnwire.tool_executor.tools.configuring import ToolSettings, built_in, described_as, settings_of
from turnwire.tool_executor.tools.http import WebApi
from turnwire.tool_executor.tools.port import Answer, Sending

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from turnwire.tool_executor.tools.port import Call, Piece, State, Surroundings
    from turnwire.tool_executor.v1 import tool_pb2

TOOL = "web_search"
MOST_BYTES = 4 * 1024 * 1024
_LONGEST_SNIPPET = 600
_LONGEST_TITLE = 200
_LONGEST_URL = 2000
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")
_SCHEMA = {
    "type": "object",
    "properties": {"query": {"type": "string", "minLength": 1, "maxLength": 400, "description": "What to look for."}},
    "required": ["query"],
    "additionalProperties": False,
}


class SearchToolSettings(ToolSettings):
    """The settings of one search tool."""

    max_results: Annotated[int, Field(ge=1, le=20)] = 5
    """At most so many results."""
    site: Annotated[str, Field(pattern=r"^([A-Za-z0-9-]+\.)+[A-Za-z]{2,}$")] | None = None
    """Only pages of this site, as `docs.python.org`."""


class SearchSettings(ToolSettings):
    """The settings of every provider of searches."""

    max_results: Annotated[int, Field(ge=1, le=20)] = 5
    """At most so many results, where a tool says nothing."""


@dataclass(frozen=True, slots=True)
class Query:
    """A search to make."""

    text: str
    max_results: int
    key: str
    call: Call


class WebSearchProvider:
    """A provider of searches (abstract): a subclass knows how one maker is asked, and where its results lie."""

    takes_files = False
    takes_authorization = True
    defaults = Limits(connect=10.0, first_byte=30.0, silence=30.0, total=60.0)
    arguments: ClassVar[tuple[str, ...]] = ("query",)

    def __init__(self, provider_id: str, base_url: str, api_key: str, max_results: int) -> None:
        """Asks nobody yet."""
        self.provider_id = provider_id
        self._key = api_key
        self._max_results = max_results
        self.api = WebApi(provider_id, base_url, [api_key])
        self._tool = built_in(provider_id, TOOL, "Searches the web.", _SCHEMA, idempotent=True)

    async def start(self, surroundings: Surroundings) -> None:
        """Connects when it is first asked."""

    async def close(self) -> None:
        """Closes all connections."""
        await self.api.close()

    def state(self) -> tuple[State.ValueType, str]:
        """Ready; whether the maker answers shows with each search."""
        return inspect_service_pb2.Provider.STATE_READY, ""

    def tools(self) -> Sequence[tool_pb2.Tool]:
        """Returns `web_search`."""
        return [self._tool]

    async def accept(self, tool: tool_pb2.Tool) -> None:
        """Takes settings of its form, and a description with a query."""
        self._settings(tool)
        described_as(tool, self._tool, self.arguments)

    async def execute(self, call: Call) -> AsyncGenerator[Piece]:
        """Searches once."""
        settings = self._settings(call.tool)
        text = str(call.arguments["query"])
        query = Query(
            text=f"{text} site:{settings.site}" if settings.site else text,
            max_results=settings.max_results,
            key=call.authorization or self._key,
            call=call,
        )
        yield Sending()
        found = await self.found(query)
        results = [result for each in found if (result := _result(each)) is not None][: settings.max_results]
        yield Answer(json.dumps({"query": text, "results": results}, ensure_ascii=False))

    async def has_ended(self, tenant: str, session_id: str) -> bool:
        """Nobody waits for an answer any more."""
        return True

    async def found(self, query: Query) -> Sequence[tuple[object, object, object]]:
        """Returns (title, URL, snippet) of what a maker has found, as it says them."""
        raise NotImplementedError

    def listed(self, answer: Any, *path: str) -> list[Mapping[str, Any]]:
        """Returns the list at a place of an answer; empty where the maker leaves it out.

        Raises:
            ProviderError: something else is there.
        """
        here = answer
        for name in path:
            if not isinstance(here, dict):
                raise ProviderError(self.provider_id, f"its answer has no object around {name!r}")
            here = here.get(name)
            if here is None:
                return []
        if not isinstance(here, list):
            raise ProviderError(self.provider_id, f"its answer has no list in {'.'.join(path)!r}")
        return [each for each in here if isinstance(each, dict)]  # pyright: ignore[reportUnknownVariableType] - JSON

    def _settings(self, tool: tool_pb2.Tool) -> SearchToolSettings:
        return settings_of(SearchToolSettings, tool, {"max_results": self._max_results})


def _result(found: tuple[object, object, object]) -> dict[str, str] | None:
    title, url, snippet = found
    if not isinstance(url, str) or not url.startswith(("http://", "https://")) or len(url) > _LONGEST_URL:
        return None
    return {"title": _plain(title, _LONGEST_TITLE) or url, "url": url, "snippet": _plain(snippet, _LONGEST_SNIPPET)}


def _plain(text: object, most: int) -> str:
    """Returns a text without marks and entities, on one line."""
    if not isinstance(text, str):
        return ""
    words = " ".join(html.unescape(_TAG.sub("", text)).split())
    return words if len(words) <= most else f"{words[: most - 1].rstrip()}…"
