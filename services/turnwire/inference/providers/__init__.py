"""The providers of the inference service. Adding one is a module and a line of this table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnwire.runtime.providers import ProviderTable
from turnwire.runtime.settings import ProviderSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnwire.inference.providers.port import Provider

PROVIDERS = ProviderTable(
    "inference",
    {
        "inline::llama-cpp": "turnwire.inference.providers.llama_cpp:LlamaCppProvider",
        "inline::minilm": "turnwire.inference.providers.minilm:MiniLmProvider",
        "remote::openai": "turnwire.inference.providers.openai:OpenAiProvider",
        "inline::scripted": "turnwire.testing.scripted:ScriptedProvider",
        "inline::replay": "turnwire.testing.replay:ReplayProvider",
    },
)
"""Provider type to `module:class`."""

problems = PROVIDERS.problems


def build(provider_id: str, provider_type: str, config: Mapping[str, Any]) -> Provider:
    """Returns a provider, not started yet.

    Raises:
        InvalidArgument: there is no such type, its configuration is wrong, or a package of it is missing.
    """
    # Not validated: that there is no such type is what the table says, with those there are.
    entry = ProviderSettings.model_construct(provider_id=provider_id, provider_type=provider_type, config=dict(config))
    provider: Provider = PROVIDERS.build(entry)
    return provider
