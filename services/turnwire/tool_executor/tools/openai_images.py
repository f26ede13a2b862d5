"""`remote::openai-images`: the tool `photogen`, by OpenAI's images endpoint or one that speaks the same.

```yaml
providers:
  tool_executor:
    - provider_id: images
      provider_type: "remote::openai-images"
      config: {base_url: "http://gpu:7860/v1", model: sdxl, response_format: b64_json}
```
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from turnwire.common.v1 import inspect_service_pb2, message_pb2
from turnwire.errors import ProviderError
from turnwire.runtime.fetch import GuardedFetcher
from turnwire.tool_executor.artifacts import sniffed
from turnwire.tool_executor.artifacts.sniffing import HEAD
from turnwire.tool_executor.limits import Limits
from turnwire.tool_executor.patience import patiently
from turnwire.tool_executor.tools.configuring import ToolSettings, built_in, described_as, settings_of
from turnwire.tool_executor.tools.http import WebApi
from turnwire.tool_executor.tools.port import Answer, Sending

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from turnwire.tool_executor.tools.port import Call, Piece, State, Surroundings
    from turnwire.tool_executor.v1 import tool_pb2

TOOL = "photogen"
_MOST_BYTES = 64 * 1024 * 1024
_MOST_PICTURE = 40 * 1024 * 1024
_SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}
_SCHEMA = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string", "minLength": 1, "maxLength": 4000, "description": "What the picture shows."}
    },
    "required": ["prompt"],
    "additionalProperties": False,
}


class ImageToolSettings(ToolSettings):
    """The settings of one tool that makes pictures."""

    model: str = Field(default="", max_length=200)
    """The model; empty: the provider's."""
    size: str = Field(default="", pattern="^(|auto|[0-9]{2,5}x[0-9]{2,5})$")
    """As `1024x1024`; empty: the model's own default."""
    quality: str = Field(default="", max_length=20)
    """As the model has it; empty: its own default."""


class OpenAiImagesProvider:
    """Has pictures made."""

    takes_files = False
    takes_authorization = True
    defaults = Limits(connect=10.0, first_byte=240.0, silence=240.0, total=300.0)

    class Config(ImageToolSettings):
        """The configuration."""

        api_key: str = ""
        """The key; empty for a server that wants none."""
        base_url: str = "https://api.openai.com/v1"
        """Where the API is."""
        model: str = Field(default="gpt-image-1", min_length=1, max_length=200)
        """The model, where a tool names none."""
        response_format: Literal["", "b64_json", "url"] = ""
        """How the picture is to come; empty: not said, since OpenAI's newer models refuse the word."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Asks nobody yet."""
        self.provider_id = provider_id
        self._key = config.api_key
        self._response_format = config.response_format
        # An address that a server names is no better than one that a stranger names.
        self._fetcher = GuardedFetcher()
        self._settings = config.model_dump(include={"model", "size", "quality"})
        self._api = WebApi(provider_id, config.base_url, [config.api_key])
        self._surroundings: Surroundings | None = None
        self._tool = built_in(
            provider_id, TOOL, "Makes a picture from a description and shows it to the user.", _SCHEMA, idempotent=False
        )

    async def start(self, surroundings: Surroundings) -> None:
        """Connects when it is first asked."""
        self._surroundings = surroundings
        self._fetcher = GuardedFetcher(allow_hosts=surroundings.allow_hosts)

    async def close(self) -> None:
        """Closes all connections."""
        await self._api.close()

    def state(self) -> tuple[State.ValueType, str]:
        """Ready; whether it answers shows with each picture."""
        return inspect_service_pb2.Provider.STATE_READY, ""

    def tools(self) -> Sequence[tool_pb2.Tool]:
        """Returns `photogen`."""
        return [self._tool]

    async def accept(self, tool: tool_pb2.Tool) -> None:
        """Takes settings of its form, and a description with a prompt."""
        settings_of(ImageToolSettings, tool, self._settings)
        described_as(tool, self._tool, ("prompt",))

    async def execute(self, call: Call) -> AsyncGenerator[Piece]:
        """Has one picture made."""
        assert self._surroundings is not None
        settings = settings_of(ImageToolSettings, call.tool, self._settings)
        key = call.authorization or self._key
        body = {"model": settings.model, "prompt": str(call.arguments["prompt"]), "n": 1}
        wishes = {"size": settings.size, "quality": settings.quality, "response_format": self._response_format}
        body |= {name: value for name, value in wishes.items() if value}
        yield Sending()
        answer = await self._api.answer(
            "POST",
            "/images/generations",
            call,
            most=_MOST_BYTES,
            secret=key,
            body=body,
            headers={"authorization": f"Bearer {key}"} if key else {},
        )
        made = self._made(answer)
        picture = await self._picture(made, call.limits.total)
        mime_type = sniffed("", picture[:HEAD])
        if not mime_type.startswith("image/"):
            raise ProviderError(self.provider_id, f"what it sent is no picture but {mime_type}", model=settings.model)
        artifacts = self._surroundings.artifacts
        # It is made, and paid for.
        artifact = await patiently(
            lambda: artifacts.keep(
                call.tenant,
                f"picture.{_SUFFIXES.get(mime_type, 'bin')}",
                picture,
                mime_type=mime_type,
                session_id=call.session_id,
                metadata={"tool": call.tool.tool_id, "call_id": call.call_id, "model": settings.model},
            )
        )
        revised: Any = made.get("revised_prompt")
        told = f" It shows: {revised[:1000]}" if isinstance(revised, str) and revised else ""
        attachment = message_pb2.Attachment(
            artifact_id=artifact.artifact_id, name=artifact.name, mime_type=artifact.mime_type
        )
        yield Answer(f"The picture {artifact.name} was made and is shown to the user.{told}", attachments=[attachment])

    async def has_ended(self, tenant: str, session_id: str) -> bool:
        """A picture that was asked for is made, and paid for, whoever still wants it."""
        return False

    def _made(self, answer: Any) -> dict[str, Any]:
        data: Any = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list) or not data or not isinstance(data[0], dict):
            raise ProviderError(self.provider_id, "its answer has no picture in `data`")
        first: dict[str, Any] = data[0]
        return first

    async def _picture(self, made: dict[str, Any], seconds: float) -> bytes:
        encoded, url = made.get("b64_json"), made.get("url")
        if isinstance(encoded, str):
            try:
                return base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                raise ProviderError(self.provider_id, "what it sent as base64 is none") from None
        if isinstance(url, str):
            fetched = await self._fetcher.fetch(url, max_bytes=_MOST_PICTURE, seconds=seconds)
            return fetched.data
        raise ProviderError(self.provider_id, "its answer has neither `b64_json` nor `url`")
