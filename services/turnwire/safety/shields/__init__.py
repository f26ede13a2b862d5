"""The providers of the safety service. Adding one is a module and a line of this table."""

from __future__ import annotations

from turnwire.runtime.providers import ProviderTable

PROVIDERS = ProviderTable(
    "safety",
    {
        "inline::rules": "turnwire.safety.shields.rules:RulesProvider",
        "inline::secrets": "turnwire.safety.shields.secrets:SecretsProvider",
        "inline::pii": "turnwire.safety.shields.pii:PiiProvider",
        "inline::prompt-injection": "turnwire.safety.shields.prompt_injection:PromptInjectionProvider",
        "inline::llama-guard": "turnwire.safety.shields.llama_guard:LlamaGuardProvider",
    },
)
"""Provider type to `module:class`."""

problems = PROVIDERS.problems
