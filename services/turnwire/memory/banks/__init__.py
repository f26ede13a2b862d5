"""The providers of the memory service. Adding one is a module and a line of this table."""

from __future__ import annotations

from turnwire.runtime.providers import ProviderTable

PROVIDERS = ProviderTable(
    "memory",
    {
        "inline::qdrant-edge": "turnwire.memory.banks.qdrant_edge:QdrantEdgeProvider",
        "remote::qdrant": "turnwire.memory.banks.qdrant:QdrantProvider",
        "inline::sqlite": "turnwire.memory.banks.sqlite:SqliteProvider",
    },
)
"""Provider type to `module:class`."""

problems = PROVIDERS.problems
