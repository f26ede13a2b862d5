"""`remote::bing-search`: the tool `web_search` by the Bing Web Search API v7, or by a service that speaks it.

Microsoft has retired its own endpoint on 11 August 2025; the provider is for what is left of it and for those who serve
its form: set `base_url`.

```yaml
providers:
  tool_executor:
    - provider_id: bing
      provider_type: "remote::bing-search"
      config: {base_url: "https://search.example.com/v7.0", api_key: "${env.BING_API_KEY}"}
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from turnwire.tool_executor.tools.web_search import MOST_BYTES, Query, SearchSettings, WebSearchProvider

if TYPE_CHECKING:
    from collections.abc import Sequence


class BingSearchProvider(WebSearchProvider):
    """Asks Bing."""

    class Config(SearchSettings):
        """The configuration."""

        api_key: str = Field(min_length=1)
        """The subscription key."""
        base_url: str = "https://api.bing.microsoft.com/v7.0"
        """Where the API is."""
        market: str = Field(default="", max_length=10)
        """A market, as `en-GB`. Empty: Bing chooses."""
        safe_search: Literal["Off", "Moderate", "Strict"] = "Moderate"
        """What is left out."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Asks nobody yet."""
        super().__init__(provider_id, config.base_url, config.api_key, config.max_results)
        self._market = config.market
        self._safe_search = config.safe_search

    async def found(self, query: Query) -> Sequence[tuple[object, object, object]]:
        """Returns what Bing has found."""
        params = {
            "q": query.text,
            "count": str(query.max_results),
            "responseFilter": "Webpages",
            "safeSearch": self._safe_search,
            "textFormat": "Raw",
        }
        if self._market:
            params["mkt"] = self._market
        answer = await self.api.answer(
            "GET",
            "/search",
            query.call,
            most=MOST_BYTES,
            secret=query.key,
            params=params,
            headers={"ocp-apim-subscription-key": query.key},
        )
        return [
            (each.get("name"), each.get("url"), each.get("snippet"))
            for each in self.listed(answer, "webPages", "value")
        ]
