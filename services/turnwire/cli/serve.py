"""`turnwire agent`, `turnwire inference`, …: one service in this process."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from turnwire.cli.options import resolved, settings_options
from turnwire.cli.services import GATEWAY, SERVICES

SUPERVISOR = "TURNWIRE_SUPERVISOR"
"""The process id of the `turnwire up` that started this process."""
_PR_SET_PDEATHSIG = 1


def serve(names: list[str], config_file: Path | None, data_dir: Path | None, port_offset: int | None) -> int:
    """Serves until SIGTERM; returns the exit code."""
    _end_with_supervisor()
    from turnwire.runtime.hosting import run
    from turnwire.runtime.telemetry import configure_logs

    settings = resolved(config_file, data_dir, port_offset)
    configure_logs(settings.telemetry, names[0] if len(names) == 1 else "mesh")
    return run(names, settings, SERVICES)


def _end_with_supervisor() -> None:
    """Ends this process when the supervisor dies, even if that was killed."""
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(supervisor):
        sys.exit(0)  # it died before the line above


def _command(name: str) -> Any:
    @click.command(name.replace("_", "-"), help=f"Run the {name.replace('_', ' ')} service until SIGTERM.")
    @settings_options
    def command(config_file: Path | None, data_dir: Path | None, port_offset: int | None) -> None:
        sys.exit(serve([name], config_file, data_dir, port_offset))

    return command


agent = _command("agent")
inference = _command("inference")
safety = _command("safety")
memory = _command("memory")
tool_executor = _command("tool_executor")
sandbox_runner = _command("sandbox_runner")


@click.command()
@settings_options
def gateway(config_file: Path | None, data_dir: Path | None, port_offset: int | None) -> None:
    """Run the gateway until SIGTERM: the contract over HTTP, an OpenAI-compatible API, the console."""
    _end_with_supervisor()
    from turnwire.runtime.extras import ExtraMissing, imported
    from turnwire.runtime.telemetry import configure_logs

    settings = resolved(config_file, data_dir, port_offset)
    configure_logs(settings.telemetry, GATEWAY)
    try:
        serving = imported("turnwire_gateway.serving", setting="turnwire gateway", extra="gateway")
    except ExtraMissing as error:
        raise click.ClickException(str(error)) from None
    sys.exit(serving.run(settings))
