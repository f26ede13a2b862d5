"""`remote::tavily-search`: the tool `web_search` by Tavily.

```yaml
providers:
  tool_executor:
    - provider_id: tavily
      provider_type: "remote::tavily-search"
      config: {api_key: "${env.TAVILY_API_KEY}"}
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from turnwire.errors import ProviderError, ProviderRateLimited
from turnwire.tool_executor.tools.web_search import MOST_BYTES, Query, SearchSettings, WebSearchProvider

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIMITS = {"432": "the limit of the key or its plan is reached", "433": "the limit of pay-as-you-go is reached"}


class TavilySearchProvider(WebSearchProvider):
    """Asks Tavily."""

    class Config(SearchSettings):
        """The configuration."""

        api_key: str = Field(min_length=1)
        """The key, as `tvly-…`."""
        base_url: str = "https://api.tavily.com"
        """Where the API is."""
        search_depth: Literal["basic", "advanced"] = "basic"
        """`advanced` costs twice as much and reads more."""
        topic: Literal["general", "news", "finance"] = "general"
        """What is searched."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Asks nobody yet."""
        super().__init__(provider_id, config.base_url, config.api_key, config.max_results)
        self._search_depth = config.search_depth
        self._topic = config.topic

    async def found(self, query: Query) -> Sequence[tuple[object, object, object]]:
        """Returns what Tavily has found."""
        try:
            answer = await self.api.answer(
                "POST",
                "/search",
                query.call,
                most=MOST_BYTES,
                secret=query.key,
                body={
                    "query": query.text,
                    "max_results": query.max_results,
                    "search_depth": self._search_depth,
                    "topic": self._topic,
                },
                headers={"authorization": f"Bearer {query.key}"},
            )
        except ProviderError as error:
            status = error.metadata.get("status", "")
            if status in _LIMITS:
                raise ProviderRateLimited(self.provider_id, _LIMITS[status], status=int(status)) from None
            raise
        return [(each.get("title"), each.get("url"), each.get("content")) for each in self.listed(answer, "results")]
