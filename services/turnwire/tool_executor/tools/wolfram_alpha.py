"""`remote::wolfram-alpha`: the tool `wolfram_alpha`, by the Full Results API of Wolfram|Alpha.

```yaml
providers:
  tool_executor:
    - provider_id: wolfram
      provider_type: "remote::wolfram-alpha"
      config: {api_key: "${env.WOLFRAM_APP_ID}"}
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from turnwire.common.v1 import error_pb2, inspect_service_pb2
from turnwire.errors import ProviderError, ProviderUnauthenticated
from turnwire.tool_executor.limits import Limits
from turnwire.tool_executor.tools.configuring import ToolSettings, built_in, described_as, settings_of
from turnwire.tool_executor.tools.http import WebApi
from turnwire.tool_executor.tools.port import Answer, Sending

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from turnwire.tool_executor.tools.port import Call, Piece, State, Surroundings
    from turnwire.tool_executor.v1 import tool_pb2

TOOL = "wolfram_alpha"
_MOST_BYTES = 8 * 1024 * 1024
_MOST_PODS = 12
_LONGEST_POD = 2000
_SCHEMA = {
    "type": "object",
    "properties": {
        "query": {
            "type": "string",
            "minLength": 1,
            "maxLength": 1000,
            "description": "A computation or a question of fact, in English.",
        }
    },
    "required": ["query"],
    "additionalProperties": False,
}


class WolframAlphaProvider:
    """Asks Wolfram|Alpha."""

    takes_files = False
    takes_authorization = True
    defaults = Limits(connect=10.0, first_byte=45.0, silence=45.0, total=60.0)

    class Config(ToolSettings):
        """The configuration."""

        api_key: str = Field(min_length=1)
        """The AppID."""
        base_url: str = "https://api.wolframalpha.com/v2"
        """Where the API is."""
        units: Literal["metric", "nonmetric"] = "metric"
        """In which units it answers."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Asks nobody yet."""
        self.provider_id = provider_id
        self._key = config.api_key
        self._units = config.units
        self._api = WebApi(provider_id, config.base_url, [config.api_key])
        self._tool = built_in(
            provider_id, TOOL, "Computes and looks up facts with Wolfram|Alpha.", _SCHEMA, idempotent=True
        )

    async def start(self, surroundings: Surroundings) -> None:
        """Connects when it is first asked."""

    async def close(self) -> None:
        """Closes all connections."""
        await self._api.close()

    def state(self) -> tuple[State.ValueType, str]:
        """Ready; whether it answers shows with each question."""
        return inspect_service_pb2.Provider.STATE_READY, ""

    def tools(self) -> Sequence[tool_pb2.Tool]:
        """Returns `wolfram_alpha`."""
        return [self._tool]

    async def accept(self, tool: tool_pb2.Tool) -> None:
        """Takes a tool without settings, and a description with a query."""
        settings_of(ToolSettings, tool)
        described_as(tool, self._tool, ("query",))

    async def execute(self, call: Call) -> AsyncGenerator[Piece]:
        """Asks once."""
        key = call.authorization or self._key
        params = {
            "appid": key,
            "input": str(call.arguments["query"]),
            "output": "json",
            "format": "plaintext",
            "units": self._units,
        }
        yield Sending()
        answer = await self._api.answer(
            "GET",
            "/query",
            call,
            most=_MOST_BYTES,
            secret=key,
            params=params,
        )
        result: Any = answer.get("queryresult") if isinstance(answer, dict) else None
        if not isinstance(result, dict):
            raise ProviderError(self.provider_id, "its answer has no `queryresult`")
        yield self._read(result)

    async def has_ended(self, tenant: str, session_id: str) -> bool:
        """Nobody waits for an answer any more."""
        return True

    def _read(self, result: dict[str, Any]) -> Answer:
        failure = result.get("error")
        if isinstance(failure, dict):
            code, message = str(failure.get("code", "")), str(failure.get("msg", ""))[:300]
            # 1 is an AppID that it does not know, 2 a missing one.
            if code in {"1", "2"}:
                raise ProviderUnauthenticated(self.provider_id, message or "invalid AppID")
            raise ProviderError(self.provider_id, f"error {code}: {message}")
        told = [text for pod in _dicts(result.get("pods"))[:_MOST_PODS] if (text := _told(pod))]
        if result.get("success") is not True or not told:
            return Answer("", _not_understood(result))
        return Answer("\n\n".join(told))


def _told(pod: dict[str, Any]) -> str:
    texts = [str(each.get("plaintext") or "").strip() for each in _dicts(pod.get("subpods"))]
    whole = "\n".join(text for text in texts if text)[:_LONGEST_POD]
    return f"{pod.get('title', 'Result')}:\n{whole}" if whole else ""


def _not_understood(result: dict[str, Any]) -> error_pb2.Failure:
    means = [str(each.get("val", "")) for each in _dicts(result.get("didyoumeans"))]
    tips = [str(each.get("text", "")) for each in _dicts(result.get("tips"))]
    hints = [f"Did it mean {', '.join(means[:3])}?" if means else "", *tips[:2]]
    hint = " ".join(each for each in hints if each) or "Ask in other, simpler words."
    return error_pb2.Failure(
        reason=error_pb2.ERROR_REASON_TOOL_FAILED,
        message=f"Wolfram|Alpha has no answer to this. {hint}",
        metadata={"tool": TOOL},
    )


def _dicts(value: Any) -> list[dict[str, Any]]:
    """Returns the objects of a list; the API gives a single one without the list around it."""
    found = value if isinstance(value, list) else [value]
    return [each for each in found if isinstance(each, dict)]  # pyright: ignore[reportUnknownVariableType] - JSON
