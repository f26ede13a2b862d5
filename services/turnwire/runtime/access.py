"""Who may call what. A method that stands nowhere may be called by nobody."""

from __future__ import annotations

_READ = frozenset({"viewer", "user", "admin", "service"})
_RUN = frozenset({"user", "admin", "service"})
_MANAGE = frozenset({"admin", "service"})
_MESH = frozenset({"service"})
_ANYBODY = frozenset({"*"})

_READ_VERBS = ("Get", "List", "Watch", "Export", "Download", "Query", "Count")

_RUNNING = {
    "turnwire.agent.v1.AgentService": _RUN,
    # The replicas' own; where no access is configured everybody is an admin, they too.
    "turnwire.agent.v1.TurnOwnerService": _MANAGE,
    "turnwire.inference.v1.InferenceService": _RUN,
    "turnwire.safety.v1.SafetyService": _RUN,
    "turnwire.memory.v1.MemoryService": _RUN,
    "turnwire.tool_executor.v1.ToolExecutorService": _RUN,
    "turnwire.tool_executor.v1.ArtifactService": _RUN,
    "turnwire.inference.v1.ModelService": _MANAGE,
    "turnwire.safety.v1.ShieldService": _MANAGE,
    "turnwire.memory.v1.MemoryBankService": _RUN,
    "turnwire.tool_executor.v1.ToolService": _MANAGE,
    "turnwire.sandbox_runner.v1.SandboxRunnerService": _MESH,
    "turnwire.access.v1.AccessService": _MANAGE,
    "turnwire.common.v1.InspectService": _READ,
    "grpc.reflection.v1.ServerReflection": _READ,
    "grpc.reflection.v1alpha.ServerReflection": _READ,
    "grpc.health.v1.Health": _ANYBODY,
}
"""Service to the roles that may call its methods."""

_METHODS = {"turnwire.access.v1.AccessService/WhoAmI": _READ}
"""Methods that differ from their service."""


def allowed_roles(method: str) -> frozenset[str]:
    """Returns the roles that may call a method, given as `package.Service/Method`; empty for nobody."""
    known = _METHODS.get(method)
    if known is not None:
        return known
    service, _, name = method.partition("/")
    roles = _RUNNING.get(service, frozenset())
    # Reading is allowed to viewers too, except where only the mesh itself may go.
    if roles in (_RUN, _MANAGE) and name.startswith(_READ_VERBS) and service != "turnwire.access.v1.AccessService":
        return roles | _READ
    return roles


def may_call(method: str, roles: frozenset[str]) -> bool:
    """True when one of the roles may call the method."""
    allowed = allowed_roles(method)
    return "*" in allowed or bool(allowed & roles)
