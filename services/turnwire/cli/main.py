"""`turnwire`: the commands, each loaded when it is called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NoReturn

import click

COMMANDS = {
    "ask": ("turnwire.cli.ask:ask", "Ask an agent once and show the turn as it happens."),
    "chat": ("turnwire.cli.chat:chat", "Talk with an agent."),
    "up": ("turnwire.cli.up:up", "Start the mesh."),
    "down": ("turnwire.cli.down:down", "Stop the mesh."),
    "status": ("turnwire.cli.status:status", "Show what is up."),
    "doctor": ("turnwire.cli.doctor:doctor", "Find out what is wrong, and what to do."),
    "agents": ("turnwire.cli.agents:agents", "List, show, make, change and delete agents."),
    "sessions": ("turnwire.cli.sessions:sessions", "List, show, begin, fork, change and delete sessions."),
    "turns": ("turnwire.cli.turns:turns", "List, show, watch, answer, cancel and delete turns."),
    "models": ("turnwire.cli.models:models", "List, register and fetch models."),
    "banks": ("turnwire.cli.banks:banks", "List, show, make, fill, ask and delete memory banks."),
    "shields": ("turnwire.cli.shields:shields", "List, show, register, unregister and try shields."),
    "tools": ("turnwire.cli.tools:tools", "List, show, register and unregister tools."),
    "providers": ("turnwire.cli.models:providers", "List the providers and their state."),
    "store": ("turnwire.cli.store:store", "Show the databases of the services, and bring them up to date."),
    "config": ("turnwire.cli.config:config", "Show, check and describe the settings."),
    "agent": ("turnwire.cli.serve:agent", "Run the agent service."),
    "inference": ("turnwire.cli.serve:inference", "Run the inference service."),
    "safety": ("turnwire.cli.serve:safety", "Run the safety service."),
    "memory": ("turnwire.cli.serve:memory", "Run the memory service."),
    "tool-executor": ("turnwire.cli.serve:tool_executor", "Run the tool executor."),
    "gateway": ("turnwire.cli.serve:gateway", "Run the gateway: HTTP, an OpenAI-compatible API, the console."),
    "sandbox-runner": ("turnwire.cli.serve:sandbox_runner", "Run the sandbox runner."),
}
"""Name to (`module:command`, one line of help)."""

INTERRUPTED = 130


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
    """AI agents as a mesh of gRPC services.

    Commands find the mesh that `turnwire up` started in this folder or above it. Another one is named by
    TURNWIRE_DATA_DIR (its data directory), or by TURNWIRE_AGENT_ADDRESS and TURNWIRE_INFERENCE_ADDRESS.
    TURNWIRE_API_KEY is sent with every call, TURNWIRE_TLS_CA names the authority of a mesh with TLS.

    Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 3 the turn waits for input, 70 a defect of Turnwire,
    130 interrupted.
    """


def main() -> NoReturn:
    """Runs the command and ends the process; errors are told in words, `TURNWIRE_DEBUG=1` shows their trace."""
    if os.environ.get("TURNWIRE_DEBUG"):
        sys.exit(cli.main(prog_name="turnwire"))
    try:
        code = cli.main(prog_name="turnwire", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except Exception as error:
        from turnwire.cli.failures import told  # what it needs takes longer to load than most commands

        said, code = told(error)
        click.echo(f"Error: {said}", err=True)
        sys.exit(code)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
