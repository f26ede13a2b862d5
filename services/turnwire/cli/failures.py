"""Errors as the command line tells them: in words, with what to do next."""

from __future__ import annotations

import os

FAILED = 1
DEFECT = 70
"""Turnwire itself is wrong, as `sysexits.h` numbers it."""


def told(error: Exception) -> tuple[str, int]:
    """Returns an error in words, and the exit code for it."""
    from turnwire.errors import TurnwireError, Unauthenticated, Unavailable
    from turnwire.runtime.extras import ExtraMissing
    from turnwire.runtime.settings import SettingsError
    from turnwire.weights import WeightsError

    match error:
        case Unavailable():
            return f"{error.message}{_where(error)}", FAILED
        case Unauthenticated():
            return f"{error.message} {_key()}", FAILED
        case TurnwireError():
            return error.message, FAILED
        case SettingsError() | WeightsError() | ExtraMissing():
            return str(error), FAILED
        case ModuleNotFoundError() if not (error.name or "turnwire").startswith("turnwire"):
            return f"the package {error.name} is not installed: pip install 'turnwire[all]'", FAILED
        case OSError():
            return str(error), FAILED
        case _:
            kind = type(error).__name__
            return (
                f"Turnwire has a defect: {kind}: {error}. TURNWIRE_DEBUG=1 shows its trace; please report it.",
                DEFECT,
            )


def _where(error: Exception) -> str:
    """Returns where a service that cannot be reached was looked for, and why there."""
    from turnwire.cli.run_file import is_running
    from turnwire.client.finding import address_of, find_mesh
    from turnwire.common.v1 import error_pb2
    from turnwire.errors import TurnwireError

    if not isinstance(error, TurnwireError) or error.reason != error_pb2.ERROR_REASON_SERVICE_UNAVAILABLE:
        return ""
    service = error.metadata.get("service", "agent")
    variable = f"TURNWIRE_{service.upper()}_ADDRESS"
    if os.environ.get(variable):
        return f" It was looked for at {os.environ[variable]}, as {variable} says."
    mesh = find_mesh()
    if mesh is None:
        return f" No mesh was started in this folder or above it ({address_of(service)} was tried): `turnwire up`."
    if not is_running(mesh):
        return f" The mesh of {mesh.get('data_dir')} is no longer there: `turnwire up` starts it again."
    return f" It belongs at {address_of(service)}; its log is in {mesh.get('data_dir')}/logs."


def _key() -> str:
    if os.environ.get("TURNWIRE_API_KEY"):
        return "TURNWIRE_API_KEY holds another key."
    return "The command line sends the key in TURNWIRE_API_KEY."
