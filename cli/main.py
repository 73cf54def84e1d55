"""The `agentfactory` command: finds the group that was asked for, and turns errors into lines and exit codes.

Groups are imported when they are used: grpc alone costs 0.4 s, and help must not wait for it.
"""

import importlib
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from cli import output
from shared.errors import AgentFactoryError

# Name on the command line: module that holds its `app`.
GROUPS = {
    "up": "cli.up",
    "status": "cli.status",
    "init": "cli.init",
    "migrate": "cli.migrate",
    "keys": "cli.keys",
    "template": "cli.templates",
    "agent": "cli.agents",
    "run": "cli.run",
    "execution": "cli.executions",
    "mcp": "cli.mcp",
    "node": "cli.nodes",
    "access": "cli.access",
    "tenant": "cli.tenants",
    "stop": "cli.stops",
    "audit": "cli.audit",
    "policy": "cli.policy",
    "receipt": "cli.receipts",
    "engine": "cli.engines",
    "replay": "cli.replay",
    "verify": "cli.verify",
    "trust": "cli.trust",
    "sandbox": "cli.sandbox",
    "retention": "cli.retention",
    "backup": "cli.backup",
}


class LazyGroup(TyperGroup):
    """A group whose commands are imported by name."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(GROUPS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        del ctx
        if cmd_name not in GROUPS:
            return None
        command = typer.main.get_command(importlib.import_module(GROUPS[cmd_name]).app)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals hold keys and bodies
    help="Runs agents nobody has to trust. Exit codes: 0 ok, 1 the execution did not succeed, 2 wrong use, "
    "3 refused (signature, policy, access), 4 unavailable.",
)


@app.callback()
def root() -> None:
    """Only carries the help; every command is one of GROUPS."""


def main() -> NoReturn:
    """Run the command line. Never shows a traceback for an error that this system raises on purpose."""
    try:
        app(prog_name="agentfactory")
    except AgentFactoryError as error:
        sys.exit(output.fail(error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


if __name__ == "__main__":
    main()
