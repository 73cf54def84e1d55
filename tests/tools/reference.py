"""Writes docs/reference from what is there: `python -m tests.tools.reference` (`--check` only compares).

cli.md is made of the commands, api.md of the contract and its comments, rest.md of the gateway's routes. Nothing in them is
written by hand.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer

from cli.main import app
from control_plane.access.rules import RULES
from control_plane.gateway.api import Api
from tests.tools import contract

REFERENCE: Final = Path(__file__).resolve().parents[2] / "docs" / "reference"
EXAMPLE: Final = "Example:"


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    return {"cli.md": cli_page(), "api.md": contract.page(), "rest.md": rest_page()}


def cli_page() -> str:
    """Return every command with its arguments and options."""
    root = typer.main.get_command(app)
    intro = (
        "# Command line\n\nExit codes: 0 ok, 1 the execution did not succeed, 2 wrong use, 3 refused (signature, policy, "
        "access), 4 unavailable. With `--json` a command prints one JSON value on stdout, and an error as "
        '`{"error": {"reason", "message", "hint"}}` on stderr.\n'
    )
    return intro + "".join(_commands(root, ("agentfactory",)))


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[str]:
    context = typer.Context(command, info_name=path[-1])
    if len(path) > 1:
        yield _command(command, path, context)
    names = command.list_commands(context) if hasattr(command, "list_commands") else []
    for name in names:
        inner = command.get_command(context, name)
        if not inner.hidden:
            yield from _commands(inner, (*path, name))


def _command(command: Any, path: tuple[str, ...], context: Any) -> str:
    level = "##" if len(path) == 2 else "###"
    text = f"\n{level} {' '.join(path[1:])}\n\n{_help(command.help or '')}"
    if hasattr(command, "list_commands"):
        return text
    shown = [param for param in command.params if not param.hidden and param.name != "help"]
    usage = " ".join([*path, *command.collect_usage_pieces(context)])
    rows = "".join(_row(param, context) for param in shown)
    table = f"\n| argument or option | value | default | |\n|---|---|---|---|\n{rows}" if rows else ""
    return f"{text}\n`{usage}`\n{table}"


def _help(text: str) -> str:
    """Return the help with its examples as a block of commands."""
    prose = [line.strip() for line in text.splitlines()]
    examples = [line.removeprefix(EXAMPLE).strip() for line in prose if line.startswith(EXAMPLE)]
    said = "\n".join(line for line in prose if not line.startswith(EXAMPLE)).replace("\f", "").strip() + "\n"
    block = "".join(f"$ {line}\n" for line in examples)
    return f"{said}\n```console\n{block}```\n" if examples else said


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _row(param: Any, context: Any) -> str:
    argument = _is_argument(param)
    names = param.get_usage_pieces(context) if argument else [*param.opts, *param.secondary_opts]
    kind = "" if argument or param.is_flag else param.display_type(context)
    default = "required" if param.required else _default(param)
    said = " ".join((param.help or "").split())
    cells = (", ".join(f"`{name}`" for name in names), _code(kind), default, said)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _default(param: Any) -> str:
    value = param.default
    if callable(value) or value in (None, False, (), [], ""):
        return ""
    return _code(str(getattr(value, "value", value)))


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def rest_page() -> str:
    """Return the routes with the RPC that each one is."""
    intro = (
        "# REST routes\n\nThe rule behind them, JSON, pages, uploads, events and errors are in [REST](../rest.md); what each RPC does is in "
        "[the contract](api.md). A running gateway serves the whole as OpenAPI 3.1 at `/openapi.json`, with every field and "
        "its bounds; the same document is beside this page as `openapi.json`.\n\n"
        "| method and path | RPC | form | roles |\n|---|---|---|---|\n"
    )
    return intro + "".join(
        f"| `{route.method} {route.path}` | [{route.name}](api.md#{route.service.lower()}{route.name.lower()}) "
        f"| {route.kind.value} | {', '.join(sorted(RULES[route.rpc].roles)) or 'every identity'} |\n"
        for route in Api.of_contract().routes
    )


def drifted() -> list[str]:
    """Return the pages that are not what they would be written as now."""
    return [
        name
        for name, text in pages().items()
        if not (REFERENCE / name).exists() or (REFERENCE / name).read_text(encoding="utf-8") != text
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a page is not up to date"
    )
    if parser.parse_args().check:
        names = drifted()
        for name in names:
            print(
                f"docs/reference/{name} is out of date; run: python -m tests.tools.reference", file=sys.stderr
            )
        return 1 if names else 0
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
