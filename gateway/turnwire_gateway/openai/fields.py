"""The fields of OpenAI's chat completion request, typed: what is none of them is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec


class _Part(msgspec.Struct, forbid_unknown_fields=True, tag_field="type"):
    """A piece of content."""


class TextPart(_Part, tag="text"):
    """Text."""

    text: str


class RefusalPart(_Part, tag="refusal"):
    """What a model said instead of an answer."""

    refusal: str


class ImagePart(_Part, tag="image_url"):
    """A picture."""

    image_url: Any


class AudioPart(_Part, tag="input_audio"):
    """Sound."""

    input_audio: Any


class FilePart(_Part, tag="file"):
    """A file."""

    file: Any


Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
Content = str | list[Part]


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    """What a model called, and with what."""

    name: str
    arguments: str


class FunctionCall(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A call of a function."""

    id: str
    function: CalledFunction


class CustomCall(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="custom"):
    """A call of a tool without a schema."""

    id: str
    custom: Any


class _Message(msgspec.Struct, forbid_unknown_fields=True, tag_field="role"):
    """A message."""


class SystemMessage(_Message, tag="system"):
    """Instructions."""

    content: Content
    name: str | None = None


class DeveloperMessage(_Message, tag="developer"):
    """Instructions, by their newer name."""

    content: Content
    name: str | None = None


class UserMessage(_Message, tag="user"):
    """What the user says."""

    content: Content
    name: str | None = None


class AssistantMessage(_Message, tag="assistant"):
    """What the model said, or called."""

    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    audio: Any = None
    tool_calls: list[FunctionCall | CustomCall] | None = None
    function_call: Any = None
    # Only in answers; programs send a whole answer back.
    annotations: Any = None


class ToolMessage(_Message, tag="tool"):
    """What a tool answered."""

    content: Content
    tool_call_id: str


class FunctionMessage(_Message, tag="function"):
    """What a function answered, in the form before tools."""

    name: str
    content: str | None = None


AnyMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage


class Function(msgspec.Struct, forbid_unknown_fields=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A function that the model may call, as a tool."""

    function: Function


class CustomTool(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="custom"):
    """A tool without a schema."""

    custom: Any


class ChosenFunction(msgspec.Struct, forbid_unknown_fields=True):
    """Names a function."""

    name: str


class NamedChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """The model must call this function."""

    function: ChosenFunction


class AllowedChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    """The model may call some of the tools."""

    allowed_tools: Any


class CustomChoice(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="custom"):
    """The model must call this tool without a schema."""

    custom: Any


class Schema(msgspec.Struct, forbid_unknown_fields=True):
    """What an answer has to look like."""

    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Free text."""


class ObjectFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Some JSON object."""


class SchemaFormat(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """JSON of a schema."""

    json_schema: Schema


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream has besides its chunks."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Fields(msgspec.Struct, forbid_unknown_fields=True):
    """The request."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    messages: Annotated[list[AnyMessage], msgspec.Meta(min_length=1)]
    # Honoured.
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None
    metadata: dict[str, str] | None = None
    response_format: TextFormat | ObjectFormat | SchemaFormat | None = None
    safety_identifier: str | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | AllowedChoice | CustomChoice | None = None
    tools: list[FunctionTool | CustomTool] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    user: str | None = None
    # Taken with the value that says what happens anyway; see `NEUTRAL`.
    audio: Any = None
    frequency_penalty: float | None = None
    function_call: Any = None
    functions: Any = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    moderation: Any = None
    n: int | None = None
    parallel_tool_calls: bool | None = None
    prediction: Any = None
    presence_penalty: float | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    top_logprobs: int | None = None
    verbosity: str | None = None
    web_search_options: Any = None


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": (),
    "functions": (),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields that no model of the mesh can honour, with the values beside null that ask for nothing."""
