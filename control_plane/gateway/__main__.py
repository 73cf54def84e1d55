"""`python -m control_plane.gateway`: command line, and one clear line when the start fails. Wires nothing."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from control_plane.gateway.settings import GatewaySettings
from shared.errors import (
    AgentFactoryError,
    KeyFileModeError,
    KeyFormatError,
    PortInUseError,
    UnavailableError,
    VerificationError,
)
from shared.logs import configure_logging
from shared.rpc.errors import typed_error
from shared.runtime import run_process
from shared.settings import default_config_file, load_settings

EXIT_OK: Final = 0
EXIT_WRONG_USE: Final = 2
"""Settings, missing certificates: somebody has to change something."""

EXIT_REFUSED: Final = 3
"""A key or a signature is not to be trusted as it is."""

EXIT_UNAVAILABLE: Final = 4
"""Port in use: trying again may help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the gateway until SIGTERM or SIGINT; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        settings = load_settings(
            GatewaySettings,
            config_file=given.config or default_config_file(Path.cwd()),
            overrides={
                name: getattr(given, name)
                for name in ("data_dir", "control_plane", "host", "port", "admin_port", "log_style")
            },
        )
        configure_logging(settings.log_level, settings.log_style)
        # Late: settings that are wrong are reported before half a second of imports.
        from control_plane.gateway.main import serve  # noqa: PLC0415

        run_process(serve(settings))
    except Exception as error:
        found = typed_error(error)
        if found is None:
            raise
        hint = f" ({found.hint})" if found.hint else ""
        sys.stderr.write(f"gateway does not run: {found}{hint}\n")
        return _exit_code(found)
    return EXIT_OK


def _exit_code(error: AgentFactoryError) -> int:
    if isinstance(error, UnavailableError | PortInUseError):
        return EXIT_UNAVAILABLE
    if isinstance(error, KeyFileModeError | KeyFormatError | VerificationError):
        return EXIT_REFUSED
    return EXIT_WRONG_USE


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(sorted(GatewaySettings.model_fields))
    parser = argparse.ArgumentParser(
        prog="python -m control_plane.gateway",
        description="Agent Factory's REST gateway: the control plane's services as HTTP and JSON.",
        epilog=f"Settings: AF_GATEWAY_<NAME>, or table [gateway] of agentfactory.toml: {names}. "
        "Exit codes: 0 stopped when asked to, 2 settings are wrong, 3 a key is refused, "
        "4 a port is not available.",
    )
    add = parser.add_argument
    add("--config", type=Path, help="TOML file (default: ./agentfactory.toml if it exists)")
    add("--data-dir", type=Path, help="where ca.crt lies, as 'agentfactory init' made it")
    add("--control-plane", help="host:port for tokens (default localhost:7445)")
    add("--host", help="address that HTTP listens on (default 127.0.0.1)")
    add("--port", type=int, help="HTTP (default 8080)")
    add("--admin-port", type=int, help="/metrics /healthz /readyz (default 7464)")
    add("--log-style", choices=["json", "human"], help="default json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
