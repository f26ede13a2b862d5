"""`inline::llama-guard`: a chat model as the judge, asked in the form of Llama Guard 3.

```yaml
providers:
  safety:
    - provider_id: judge
      provider_type: "inline::llama-guard"
      config: {model: llama-guard-3-8b}
```

Any model of the inference service can be the judge; one that was trained for it judges better. The prompt, the
categories S1 to S14 and the form of the answer are those of the model card of Llama Guard 3 (Meta, July 2024). An
answer in any other form is a failure of the shield, never a `safe`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import grpc
from pydantic import Field, field_validator

from turnwire.common.v1 import generation_pb2, inspect_service_pb2, message_pb2
from turnwire.errors import InvalidArgument, NotServed, ProviderError, Unavailable, from_rpc_error
from turnwire.inference.v1 import inference_service_pb2, inference_service_pb2_grpc, model_pb2, model_service_pb2
from turnwire.inference.v1.model_service_pb2_grpc import ModelServiceStub
from turnwire.runtime.channels import upstream
from turnwire.runtime.failpoints import Failpoint
from turnwire.safety.shields import llama_guard_prompt as prompt
from turnwire.safety.shields.inline import LevelName, ShieldSettings, level_of, read_config, validated
from turnwire.safety.shields.port import Judgement, built_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnwire.runtime.directory import Directory
    from turnwire.safety.shields.port import Content, State
    from turnwire.safety.v1 import shield_pb2 as registry_pb2

_NAME = "llama-guard"
_ASKED = Failpoint("safety.guard_asked")
_ANSWER_TOKENS = 100
"""All fourteen categories and the two words before them fit."""
_PAUSES = (0.5, 1.5, 3.0)
"""So many seconds it waits before it asks again, while the inference service is away: a restart takes less."""


class LlamaGuardSettings(ShieldSettings):
    """The configuration of a shield that asks a model."""

    model: Annotated[str, Field(max_length=400)] = ""
    """The judge, as `model_id` or `provider_id/model_id`. Empty: the one that `provider_shield_id` names, or the
    provider's own."""
    categories: list[prompt.Category] = Field(default_factory=lambda: list(prompt.CATEGORIES), min_length=1)
    """The hazards that count, as `S9`."""
    template: Literal["ours", "model"] = "ours"
    """`ours`: the whole prompt is sent as one message. `model`: the conversation is sent as it is, to a Llama Guard
    whose own chat template makes the prompt of it; it judges by all categories, and those that do not count are left
    out of its answer."""
    level: LevelName = "error"
    """How grave an `unsafe` is."""
    user_message: Annotated[str, Field(max_length=2000)] = (
        "I can't answer that. Is there something else I can help with?"
    )
    """What the user is told at level `error`."""

    @field_validator("categories")
    @classmethod
    def _once(cls, categories: list[prompt.Category]) -> list[prompt.Category]:
        return sorted(set(categories), key=list(prompt.CATEGORIES).index)


class LlamaGuardProvider:
    """Asks a model whether a conversation is safe."""

    class Config(LlamaGuardSettings):
        """The configuration of the provider; with `model` it brings the shield `llama-guard`."""

        timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
        """How long one judgement may take; then the shield counts as unavailable."""

    def __init__(self, provider_id: str, config: Config) -> None:
        """Asks nobody yet."""
        self.provider_id = provider_id
        self.timeout_seconds = config.timeout_seconds
        self._defaults = config.model_dump(exclude={"timeout_seconds"}, exclude_defaults=True)
        own = LlamaGuardSettings.model_validate(self._defaults)
        self._built_in = [built_in(provider_id, _NAME, own.model_dump_json(exclude_defaults=True))] if own.model else []
        self._inference: Any = None
        self._models: Any = None

    async def start(self, directory: Directory) -> None:
        """Connects to the inference service when it is first asked."""
        channel = directory.channel("inference")
        self._inference = inference_service_pb2_grpc.InferenceServiceStub(channel)
        self._models = ModelServiceStub(channel)

    async def close(self) -> None:
        """Nothing to give back: the channel is the service's."""

    def state(self) -> tuple[State.ValueType, str]:
        """Ready; whether its model is there shows with each judgement."""
        return inspect_service_pb2.Provider.STATE_READY, ""

    def shields(self) -> Sequence[registry_pb2.Shield]:
        """Returns the shield of the configured model, if one is."""
        return self._built_in

    async def accept(self, shield: registry_pb2.Shield) -> None:
        """Takes settings of its form, of a chat model that is there."""
        settings = self._settings(shield)
        try:
            response = await self._models.GetModel(model_service_pb2.GetModelRequest(model_id=settings.model))
        except grpc.RpcError as error:
            failure = from_rpc_error(error, service="inference")
            if failure.code == grpc.StatusCode.NOT_FOUND:
                available = failure.metadata.get("available", "")
                raise NotServed("model", settings.model, [available] if available else []) from None
            raise failure from None
        if response.model.type == model_pb2.MODEL_TYPE_EMBEDDING:
            raise InvalidArgument.one("config_json.model", f"{settings.model!r} makes embeddings: name a chat model")

    async def judge(self, shield: registry_pb2.Shield, content: Content, seconds: float) -> Judgement:
        """Asks the model, and reads its answer."""
        settings = self._settings(shield)
        conversation = prompt.conversation(content.messages)
        if not conversation:
            # There is nothing to judge: instructions of the author alone, or no text.
            return Judgement()
        answer = await self._answer(settings, conversation, seconds)
        try:
            found = prompt.read_answer(answer)
        except ValueError as error:
            raise ProviderError(self.provider_id, str(error), model=settings.model) from None
        counted = [category for category in found if category in settings.categories]
        judgement = Judgement(metadata={"model": settings.model})
        if len(counted) < len(found):
            judgement.metadata["ignored_categories"] = ",".join(each for each in found if each not in counted)
        if counted:
            judgement.level = level_of(settings.level)
            judgement.categories = list(counted)
            judgement.user_message = settings.user_message
        return judgement

    async def _answer(self, settings: LlamaGuardSettings, conversation: Sequence[prompt.Turn], seconds: float) -> str:
        if settings.template == "ours":
            asked = [_message(message_pb2.ROLE_USER, prompt.whole(conversation, settings.categories))]
        else:
            roles = {"User": message_pb2.ROLE_USER, "Agent": message_pb2.ROLE_ASSISTANT}
            asked = [_message(roles[turn.speaker], turn.text) for turn in conversation]
        sampling = generation_pb2.SamplingParameters(greedy=generation_pb2.GreedySampling(), max_tokens=_ANSWER_TOKENS)
        request = inference_service_pb2.ChatCompletionRequest(
            model=settings.model, messages=asked, sampling_parameters=sampling
        )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        for pause in _PAUSES:
            try:
                return await self._written(request, deadline - loop.time())
            except Unavailable:
                # A judgement has no effects, and a service that was started again is found again soon.
                if loop.time() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)
        return await self._written(request, deadline - loop.time())

    async def _written(self, request: inference_service_pb2.ChatCompletionRequest, seconds: float) -> str:
        """Returns what the model writes."""
        said: list[str] = []
        ended = False
        try:
            async with upstream(self._inference.ChatCompletion(request, timeout=seconds)) as call:
                await _ASKED.reached()
                async for piece in call:
                    if piece.WhichOneof("payload") == "text":
                        said.append(piece.text.text)
                    elif piece.WhichOneof("payload") == "completed":
                        ended = True
        except grpc.RpcError as error:
            raise from_rpc_error(error, service="inference") from None
        if not ended:
            raise ProviderError(self.provider_id, "its model stopped without an end", model=request.model)
        return "".join(said)

    def _settings(self, shield: registry_pb2.Shield) -> LlamaGuardSettings:
        values = self._defaults | read_config(shield.config_json)
        named = shield.provider_shield_id
        own = "model" in read_config(shield.config_json)
        if not own and named not in {shield.shield_id, _NAME}:
            values["model"] = named
        settings = cast("LlamaGuardSettings", validated(LlamaGuardSettings, values))
        if not settings.model:
            raise InvalidArgument.one(
                "config_json.model", "is required: the model that judges; `turnwire models list` shows what there is"
            )
        return settings


def _message(role: message_pb2.Role.ValueType, text: str) -> message_pb2.Message:
    return message_pb2.Message(role=role, parts=[message_pb2.ContentPart(text=text)])
