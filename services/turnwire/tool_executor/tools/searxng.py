"""`remote::searxng`: the tool `web_search` by a SearXNG of your own, which needs no key.

Its `settings.yml` has to allow JSON: `search: {formats: [html, json]}`.

```yaml
providers:
  tool_executor:
    - provider_id: searxng
      provider_type: "remote::searxng"
      config: {base_url: "http://searxng:8080"}
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from turnwire.errors import ProviderError, ProviderUnauthenticated
from turnwire.tool_executor.tools.web_search import MOST_BYTES, Query, SearchSettings, WebSearchProvider

if TYPE_CHECKING:
    from collections.abc import Sequence


class SearxngProvider(WebSearchProvider):
    """Asks a SearXNG."""

    takes_authorization = False

    class Config(SearchSettings):
        """The configuration."""

        base_url: str = Field(min_length=1)
        """Where it is."""
        language: str = Field(default="", max_length=20)
        """A language, as `en`. Empty: its own default."""
        categories: str = Field(default="general", max_length=200)
        """Categories, with commas between them."""
        safe_search: Literal[0, 1, 2] = 1
        """What is left out: nothing, some, much."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Asks nobody yet."""
        super().__init__(provider_id, config.base_url, "", config.max_results)
        self._language = config.language
        self._categories = config.categories
        self._safe_search = config.safe_search

    async def found(self, query: Query) -> Sequence[tuple[object, object, object]]:
        """Returns what SearXNG has found; it gives a page, and the first results of it are taken."""
        params = {
            "q": query.text,
            "format": "json",
            "categories": self._categories,
            "safesearch": str(self._safe_search),
        }
        if self._language:
            params["language"] = self._language
        try:
            answer = await self.api.answer("GET", "/search", query.call, most=MOST_BYTES, params=params)
        except ProviderUnauthenticated:
            # It knows no keys; 403 is its word for a format that its settings do not allow.
            raise ProviderError(
                self.provider_id,
                "it refuses the format JSON: its settings.yml needs `search: {formats: [html, json]}`",
                status=403,
            ) from None
        return [(each.get("title"), each.get("url"), each.get("content")) for each in self.listed(answer, "results")]
