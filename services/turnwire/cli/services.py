"""The services that a mesh is made of."""

from __future__ import annotations

from importlib.util import find_spec

SERVICES = {
    "inference": "turnwire.inference.app",
    "safety": "turnwire.safety.app",
    "memory": "turnwire.memory.app",
    "sandbox_runner": "turnwire.sandbox_runner.app",
    "tool_executor": "turnwire.tool_executor.app",
    "agent": "turnwire.agent.app",
}
"""Name to the module that offers `mount`, in the order of starting."""

GATEWAY = "gateway"
"""The edge over HTTP: no service, and started last."""


def edge() -> tuple[str, ...]:
    """Returns the gateway where its extra is installed: a mesh works without one."""
    needed = ("turnwire_gateway", "starlette", "uvicorn", "httptools", "msgspec")
    return (GATEWAY,) if all(find_spec(name) is not None for name in needed) else ()
