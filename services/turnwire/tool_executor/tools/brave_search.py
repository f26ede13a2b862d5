"""`remote::brave-search`: the tool `web_search` by the Brave Search API.

```yaml
providers:
  tool_executor:
    - provider_id: brave
      provider_type: "remote::brave-search"
      config: {api_key: "${env.BRAVE_API_KEY}"}
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from turnwire.errors import ProviderError, ProviderUnauthenticated
from turnwire.tool_executor.tools.web_search import MOST_BYTES, Query, SearchSettings, WebSearchProvider

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNPROCESSABLE = "422"


class BraveSearchProvider(WebSearchProvider):
    """Asks Brave."""

    class Config(SearchSettings):
        """The configuration."""

        api_key: str = Field(min_length=1)
        """The subscription token."""
        base_url: str = "https://api.search.brave.com/res/v1"
        """Where the API is."""
        safe_search: Literal["off", "moderate", "strict"] = "moderate"
        """What is left out."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Asks nobody yet."""
        super().__init__(provider_id, config.base_url, config.api_key, config.max_results)
        self._safe_search = config.safe_search

    async def found(self, query: Query) -> Sequence[tuple[object, object, object]]:
        """Returns what Brave has found."""
        try:
            answer = await self.api.answer(
                "GET",
                "/web/search",
                query.call,
                most=MOST_BYTES,
                secret=query.key,
                params={
                    "q": query.text,
                    "count": str(query.max_results),
                    "safesearch": self._safe_search,
                    "text_decorations": "false",
                    "result_filter": "web",
                },
                headers={"x-subscription-token": query.key},
            )
        except ProviderError as error:
            # Brave tells of a token that it does not know as of any other field that is wrong.
            if error.metadata.get("status") == _UNPROCESSABLE and "token" in error.message.lower():
                raise ProviderUnauthenticated(self.provider_id, "HTTP 422, the subscription token is invalid") from None
            raise
        return [
            (each.get("title"), each.get("url"), each.get("description"))
            for each in self.listed(answer, "web", "results")
        ]
