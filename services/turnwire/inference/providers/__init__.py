"""The providers of the inference service. Adding one is a module and a line of this table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from turnwire.errors import FieldViolation, InvalidArgument
from turnwire.runtime.settings import problems_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from turnwire.inference.providers.port import Provider
    from turnwire.runtime.settings import Place, Settings

PROVIDERS: dict[str, str] = {
    "inline::llama-cpp": "turnwire.inference.providers.llama_cpp:LlamaCppProvider",
    "inline::minilm": "turnwire.inference.providers.minilm:MiniLmProvider",
    "remote::openai": "turnwire.inference.providers.openai:OpenAiProvider",
    "inline::scripted": "turnwire.testing.scripted:ScriptedProvider",
    "inline::replay": "turnwire.testing.replay:ReplayProvider",
}
"""Provider type to `module:class`; a module is imported when a configuration names its type."""


def build(provider_id: str, provider_type: str, config: Mapping[str, Any]) -> Provider:
    """Returns a provider, not started yet.

    Raises:
        InvalidArgument: there is no such type, or its configuration is wrong.
    """
    target = PROVIDERS.get(provider_type)
    if target is None:
        known = ", ".join(sorted(PROVIDERS))
        raise InvalidArgument.one(
            f"providers.inference[{provider_id}].provider_type", f"{provider_type!r} is unknown; there are: {known}"
        )
    provider_class = _class_of(target)
    try:
        settings = provider_class.Config.model_validate(dict(config))
    except ValidationError as error:
        raise InvalidArgument(
            [
                FieldViolation(
                    f"providers.inference[{provider_id}].config.{'.'.join(str(part) for part in problem['loc'])}",
                    problem["msg"],
                )
                for problem in error.errors(include_url=False, include_input=False)
            ]
        ) from None
    provider: Provider = provider_class(provider_id, settings)
    return provider


def problems(settings: Settings) -> Iterator[tuple[Place, str]]:
    """Returns what is wrong with the configured providers, and where: a check for `load_settings`."""
    for index, entry in enumerate(settings.providers.inference):
        place: Place = ("providers", "inference", index)
        target = PROVIDERS.get(entry.provider_type)
        if target is None:
            known = ", ".join(sorted(PROVIDERS))
            yield (*place, "provider_type"), f"{entry.provider_type!r} is unknown; there are: {known}"
            continue
        try:
            _class_of(target).Config.model_validate(entry.config)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("turnwire"):
                raise
            told = f"needs the package {error.name}: install `turnwire[inference]`"
            yield (*place, "provider_type"), told
        except ValidationError as error:
            for inner, expected in problems_of(error, _class_of(target).Config):
                yield (*place, "config", *inner), expected


def _class_of(target: str) -> Any:
    module_name, _, class_name = target.partition(":")
    return getattr(import_module(module_name), class_name)
