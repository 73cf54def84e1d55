"""`python -m data_plane`: runs the node, or enrolls it. Errors become one line and an exit code.

Exit codes: 0 ended as told, 2 wrong use or settings, 3 refused (keys, identity, trust), 4 unavailable. What
only the running node needs is imported only then: enrolling takes half the time.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from data_plane.settings import CompilerSettings, NodeSettings
from shared.errors import (
    AgentFactoryError,
    EnrollmentTokenInvalidError,
    InvalidInputError,
    KeyFileModeError,
    KeyFormatError,
    NodeEvictedError,
    NodeQuarantinedError,
    NotFoundError,
    PermissionDeniedError,
    SettingsError,
    SpoolCorruptError,
    UnauthenticatedError,
    VerificationError,
    WrongStateError,
)
from shared.logs import configure_logging
from shared.runtime import run_process
from shared.settings import default_config_file, load_settings

S = TypeVar("S", NodeSettings, CompilerSettings)

WRONG_USE: Final = 2
REFUSED: Final = 3
UNAVAILABLE: Final = 4

_REFUSALS: Final = (
    VerificationError,
    KeyFileModeError,
    KeyFormatError,
    NodeEvictedError,
    NodeQuarantinedError,
    UnauthenticatedError,
    PermissionDeniedError,
    SpoolCorruptError,
    EnrollmentTokenInvalidError,
)
_WRONG_USE: Final = (SettingsError, NotFoundError, InvalidInputError, WrongStateError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code. Errors are one line on standard error, with a hint."""
    options = _parser("python -m data_plane", "Agent Factory node").parse_args(arguments)

    def run(settings: NodeSettings) -> Coroutine[Any, Any, None]:
        from data_plane.main import run_node  # noqa: PLC0415 - see above

        return run_node(settings)

    return _ended(options, NodeSettings, run)


def compiler_main(arguments: Sequence[str] | None = None) -> int:
    """Do the same for a node that compiles."""
    parser = _parser("python -m data_plane.compiler", "Agent Factory node that compiles modules for others")
    options = parser.parse_args(arguments)

    def run(settings: CompilerSettings) -> Coroutine[Any, Any, None]:
        from data_plane.compiler.main import run_compiler  # noqa: PLC0415 - see above

        return run_compiler(settings)

    return _ended(options, CompilerSettings, run)


def _ended(options: argparse.Namespace, kind: type[S], run: Callable[[S], Coroutine[Any, Any, None]]) -> int:
    """Do what the options say; errors become one line and an exit code."""
    try:
        settings = _settings(options, kind)
        configure_logging(settings.log_level, settings.log_style)
        if options.command == "enroll":
            asyncio.run(_enroll(settings, options))
        else:
            run_process(run(settings))
    except AgentFactoryError as error:
        hint = f" ({error.hint})" if error.hint else ""
        print(f"agentfactory node: {error.reason}: {error}{hint}", file=sys.stderr)  # noqa: T201
        return exit_code_of(error)
    except OSError as error:
        # A folder that cannot be written, a disk that fails: the operator's to mend, so no traceback.
        where = f"{error.filename}: " if error.filename else ""
        print(f"agentfactory node: UNAVAILABLE: {where}{error.strerror}", file=sys.stderr)  # noqa: T201
        return UNAVAILABLE
    except KeyboardInterrupt:
        return 0
    return 0


def exit_code_of(error: AgentFactoryError) -> int:
    """Return the exit code for an error that ends the process."""
    if isinstance(error, _WRONG_USE):
        return WRONG_USE
    return REFUSED if isinstance(error, _REFUSALS) else UNAVAILABLE


async def _enroll(settings: NodeSettings | CompilerSettings, options: argparse.Namespace) -> None:
    from data_plane.compiler.keys import ensure_compiler_key  # noqa: PLC0415 - see above
    from data_plane.enrollment import enroll  # noqa: PLC0415 - see above
    from shared.trust import read_trust  # noqa: PLC0415 - see above

    paths = settings.paths
    trust = read_trust(options.trust or paths.trust)
    token = _token(options.token)
    if isinstance(settings, CompilerSettings):
        # Before the identity: who is stopped between the two enrolls again, and has both.
        settings.compiler_key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(ensure_compiler_key, settings.compiler_key)
    node_id = await enroll(
        paths=paths, trust=trust, target=options.control_plane, token=token, zone=settings.zone
    )
    print(node_id)  # noqa: T201 - the result of the command


def _token(option: str) -> str:
    if option != "-":
        return option
    # A secret on the command line shows in the process list; standard input does not.
    return sys.stdin.readline(1024).strip()


def _settings(options: argparse.Namespace, kind: type[S]) -> S:
    config: Path | None = options.config or default_config_file(Path.cwd())
    return load_settings(
        kind,
        config_file=config,
        overrides={"data_dir": options.data_dir, "log_style": options.log_style},
    )


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=description)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data-dir", type=Path, help="identity and state of this node")
    common.add_argument("--config", type=Path, help="agentfactory.toml; by default the one in this folder")
    common.add_argument("--log-style", choices=("json", "human"))
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("run", parents=[common], help="run the node (the default)")
    enrolling = commands.add_parser(
        "enroll", parents=[common], help="exchange an enrollment token for a node identity"
    )
    enrolling.add_argument("--token", required=True, help="the token; - reads it from standard input")
    enrolling.add_argument("--control-plane", required=True, metavar="HOST:PORT")
    enrolling.add_argument("--trust", type=Path, help="trust.json; by default the one in the data directory")
    parser.set_defaults(data_dir=None, config=None, log_style=None)
    return parser


if __name__ == "__main__":
    sys.exit(main())
