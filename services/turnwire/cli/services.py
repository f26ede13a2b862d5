"""The services that a mesh is made of."""

from __future__ import annotations

SERVICES = {
    "inference": "turnwire.inference.app",
    "safety": "turnwire.safety.app",
    "memory": "turnwire.memory.app",
    "sandbox_runner": "turnwire.sandbox_runner.app",
    "tool_executor": "turnwire.tool_executor.app",
    "agent": "turnwire.agent.app",
}
"""Name to the module that offers `mount`, in the order of starting."""
