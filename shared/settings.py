"""How settings are read: environment over `agentfactory.toml`, one frozen class per process. Holds none.

A plane declares its settings as a subclass of `PlaneSettings` in its own settings.py and reads them once,
with `load_settings`, at its composition root. Whatever is not known stops the start.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import (
    SettingsError as LibrarySettingsError,
)

from shared.errors import SettingsError

CONFIG_FILE: Final = "agentfactory.toml"
MAX_CONFIG_BYTES: Final = 256 * 1024

OTHER_VARIABLES: Final = frozenset(
    {"AF_CACHE_DIR", "AF_SUITES_DIR", "AF_REQUIRE_SUITES", "AF_TEST_POSTGRES_15_BIN"}
)
"""Variables of build and tests, which belong to no plane."""

S = TypeVar("S", bound="PlaneSettings")


class Plane(StrEnum):
    """The processes that have settings: the prefix of their variables and the name of their table."""

    CONTROL = "control"
    GATEWAY = "gateway"
    NODE = "node"
    COMPILER = "compiler"
    CLI = "cli"

    @property
    def prefix(self) -> str:
        """Prefix of the plane's environment variables."""
        return f"AF_{self.upper()}_"


class PlaneSettings(BaseSettings):
    """Base of a plane's settings. Secrets are ``SecretStr``; sizes end in ``_bytes``."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    plane: ClassVar[Plane]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the library's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from nowhere but the constructor: `load_settings` has merged them already."""
        return (init_settings,)


class TracedSettings(PlaneSettings):
    """Base of the settings of a process that traces its work."""

    otlp_endpoint: str | None = Field(
        default=None, pattern=r"^https?://[A-Za-z0-9.\[\]:_-]+/?$", max_length=512
    )
    """Where spans go, by OTLP over gRPC: http://collector:4317, or https; nothing is traced without it."""
    otlp_ca_file: Path | None = None
    """PEM that an https collector's certificate is checked against instead of the system's."""
    trace_max_per_s: int = Field(default=100, ge=1, le=100_000)
    """Traces kept in a second, and as many failed ones: beyond it they are counted and left out."""


def load_settings(
    settings_type: type[S],
    *,
    config_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> S:
    """Return the plane's settings: overrides (command line) over environment over file over defaults.

    Args:
        settings_type: The plane's class.
        config_file: A TOML file that must exist; None means no file.
        environ: Environment to read, by default that of the process.
        overrides: Values by field name; None values are left out.

    Raises:
        SettingsError: A variable ``AF_…``, a table or a key is unknown (the nearest known name is said), the
            file is missing or no TOML, or a value is missing or refused. The message never holds a value.
    """
    environ = os.environ if environ is None else environ
    known = frozenset(settings_type.model_fields)
    _check_variables(settings_type.plane, known, environ)
    values: dict[str, object] = {}
    if config_file is not None:
        values |= _read_table(config_file, settings_type.plane, known)
    try:
        values |= _Environment(settings_type, environ)()
        values |= {name: value for name, value in (overrides or {}).items() if value is not None}
        return settings_type(**values)
    except LibrarySettingsError as error:
        raise SettingsError(f"a variable {settings_type.plane.prefix}… is not JSON: {error}") from error
    except ValidationError as error:
        raise SettingsError(_describe(error, settings_type.plane)) from None


def default_data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return where state is kept unless told otherwise: ``$XDG_DATA_HOME/agentfactory``."""
    environ = os.environ if environ is None else environ
    home = environ.get("XDG_DATA_HOME", "")
    # The XDG specification: a relative path is invalid and to be ignored.
    base = (
        Path(home) if home.startswith("/") else Path(environ.get("HOME") or "~").expanduser() / ".local/share"
    )
    return base / "agentfactory"


def default_cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return where what can be made again is kept: ``$XDG_CACHE_HOME/agentfactory``."""
    environ = os.environ if environ is None else environ
    home = environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path(environ.get("HOME") or "~").expanduser() / ".cache"
    return base / "agentfactory" / "author"


def default_config_file(folder: Path) -> Path | None:
    """Return ``agentfactory.toml`` in a folder, or None where there is none."""
    path = folder / CONFIG_FILE
    return path if path.is_file() else None


class _Environment(EnvSettingsSource):
    """The library's reading of variables (JSON for lists), but from the mapping that was passed in."""

    def __init__(self, settings_type: type[PlaneSettings], environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(settings_type, case_sensitive=False, env_prefix=settings_type.plane.prefix.lower())

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._environ.items()}


def _check_variables(plane: Plane, fields: frozenset[str], environ: Mapping[str, str]) -> None:
    known = {plane.prefix + name.upper() for name in fields} | OTHER_VARIABLES
    others = tuple(other.prefix for other in Plane if other is not plane)
    for name in sorted(environ):
        if name.startswith("AF_") and name not in known and not name.startswith(others):
            # Of other planes only the prefix is known here; their own process checks the rest.
            raise SettingsError(f"unknown variable {name}{_nearest(name, known)}", hint=f"unset {name}")


def _read_table(path: Path, plane: Plane, fields: frozenset[str]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise SettingsError(f"{path} has more than {MAX_CONFIG_BYTES} bytes")
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    planes = frozenset(Plane)
    for name, table in document.items():
        if name not in planes:
            raise SettingsError(f"unknown table [{name}] in {path}{_nearest(name, planes)}")
        if not isinstance(table, dict):
            raise SettingsError(f"{name} in {path} is not a table: write [{name}]")
    table = document.get(plane, {})
    for name in table:
        if name not in fields:
            raise SettingsError(f"unknown key {name!r} in [{plane}] of {path}{_nearest(name, fields)}")
    return dict(table)


def _nearest(name: str, known: frozenset[str] | set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f": did you mean {near[0]}?" if near else ""


def _describe(error: ValidationError, plane: Plane) -> str:
    problems = [
        f"setting {plane.prefix}{str(problem['loc'][0]).upper() if problem['loc'] else ''}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return "; ".join(problems)
