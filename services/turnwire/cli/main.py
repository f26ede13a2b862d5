"""`turnwire`: the commands, each loaded when it is called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

COMMANDS = {
    "ask": ("turnwire.cli.ask:ask", "Ask an agent once and show the turn as it happens."),
    "chat": ("turnwire.cli.chat:chat", "Talk with an agent."),
    "up": ("turnwire.cli.up:up", "Start the mesh."),
    "down": ("turnwire.cli.down:down", "Stop the mesh that `up --detach` started."),
    "status": ("turnwire.cli.status:status", "Show what is up."),
    "doctor": ("turnwire.cli.doctor:doctor", "Find out what is wrong, and what to do."),
    "agents": ("turnwire.cli.agents:agents", "List, show, make, change and delete agents."),
    "sessions": ("turnwire.cli.sessions:sessions", "List, show, begin, fork and delete sessions."),
    "turns": ("turnwire.cli.turns:turns", "List, show, watch, answer, cancel and delete turns."),
    "models": ("turnwire.cli.models:models", "List, register and fetch models."),
    "providers": ("turnwire.cli.models:providers", "List the providers and their state."),
    "config": ("turnwire.cli.config:config", "Show, check and describe the settings."),
    "agent": ("turnwire.cli.serve:agent", "Run the agent service."),
    "inference": ("turnwire.cli.serve:inference", "Run the inference service."),
    "safety": ("turnwire.cli.serve:safety", "Run the safety service."),
    "memory": ("turnwire.cli.serve:memory", "Run the memory service."),
    "tool-executor": ("turnwire.cli.serve:tool_executor", "Run the tool executor."),
    "sandbox-runner": ("turnwire.cli.serve:sandbox_runner", "Run the sandbox runner."),
}
"""Name to (`module:command`, one line of help)."""


class _Lazy(click.Group):
    """Imports a command's module only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry[0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="turnwire")
def cli() -> None:
    """AI agents as a mesh of gRPC services."""


def main() -> None:
    """Runs the command; errors are told in words, `TURNWIRE_DEBUG=1` shows their trace."""
    if os.environ.get("TURNWIRE_DEBUG"):
        cli()
        return
    try:
        cli()
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        click.echo(f"Error: {told}", err=True)
        sys.exit(1)


def _told(error: Any) -> str | None:
    """Returns an error in words, or None when it is a defect."""
    from turnwire.errors import TurnwireError
    from turnwire.runtime.settings import SettingsError
    from turnwire.weights import WeightsError

    if isinstance(error, TurnwireError):
        return error.message
    if isinstance(error, SettingsError | WeightsError):
        return str(error)
    return None


if __name__ == "__main__":
    main()
