"""Postgres' own programs as streams. Passwords go by the environment, never by arguments.

The program of the server's own major version is taken where there is one: an older one refuses the server, a
newer one writes what an older server may not read.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from control_plane.database.engine import database_url
from shared.errors import InternalError, SettingsError, UnavailableError

_VERSION: Final = re.compile(r"\(PostgreSQL\) (\d+)")
_VERSION_SECONDS: Final = 20
_MAX_ERROR_BYTES: Final = 4096
_KEPT: Final = ("HOME", "LD_LIBRARY_PATH", "PGPASSFILE")
_QUERY: Final = {
    "host": "PGHOST",
    "port": "PGPORT",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresTools:
    """The programs of one folder."""

    folder: Path
    major: int


def find_tools(folders: Sequence[Path], server: int) -> PostgresTools:
    """Return the programs for a server of this major version: its own, else the least that is newer.

    Raises:
        UnavailableError: There are none in these folders.
    """
    found = [PostgresTools(folder=one, major=major) for one in folders if (major := _major(one))]
    fitting = sorted((one for one in found if one.major >= server), key=lambda one: one.major)
    if not fitting:
        raise UnavailableError(
            f"there is no pg_dump and pg_restore for PostgreSQL {server}",
            hint=f"install the client of PostgreSQL {server}, or name its folder in AF_CLI_POSTGRES_PROGRAMS",
        )
    return fitting[0]


def _major(folder: Path) -> int:
    programs = folder / "pg_dump", folder / "pg_restore"
    if not all(one.is_file() for one in programs):
        return 0
    said = subprocess.run(  # noqa: S603 - a path of the operator's
        [str(programs[0]), "--version"],
        check=False,
        capture_output=True,
        text=True,
        timeout=_VERSION_SECONDS,
    )
    match = _VERSION.search(said.stdout)
    return int(match[1]) if match else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Where a database is, as the programs take it."""

    variables: dict[str, str] = field(repr=False)

    @classmethod
    def of(cls, url: str) -> "Login":
        """Return what a URL says.

        Raises:
            SettingsError: It is none, or says what these programs cannot be told.
        """
        parsed = database_url(url)
        given = {
            "PGHOST": parsed.host,
            "PGPORT": None if parsed.port is None else str(parsed.port),
            "PGUSER": parsed.username,
            "PGPASSWORD": parsed.password,
            "PGDATABASE": parsed.database,
        }
        variables = {name: str(value) for name, value in given.items() if value}
        for name, value in parsed.query.items():
            if name not in _QUERY:
                raise SettingsError(f"the database url says {name}, which backups cannot use")
            variables |= _several(name, value)
        return cls(variables=variables)

    def environment(self) -> dict[str, str]:
        """Return what a program is started with."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        fixed = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PGTZ": "UTC", "PGCONNECT_TIMEOUT": "10"}
        return kept | fixed | self.variables


def _several(name: str, value: str | tuple[str, ...]) -> dict[str, str]:
    """`host=a:5432&host=b:5432` are two, with the port of each."""
    values = (value,) if isinstance(value, str) else value
    if name != "host":
        return {_QUERY[name]: values[-1]}
    hosts = [
        one.rpartition(":") if ":" in one and not one.startswith("/") else (one, "", "") for one in values
    ]
    variables = {"PGHOST": ",".join(host for host, *_ in hosts)}
    if any(port for *_, port in hosts):
        variables["PGPORT"] = ",".join(port or "5432" for *_, port in hosts)
    return variables


@contextmanager
def dumping(tools: PostgresTools, login: Login) -> Iterator[IO[bytes]]:
    """Give the dump of a database as it is made; rows of partitions go through the table that they are of.

    Raises:
        UnavailableError: pg_dump failed; its last words are in the message.
    """
    arguments = ["--format=custom", "--compress=0", "--no-owner", "--no-password"]
    arguments += ["--lock-wait-timeout=30s", "--load-via-partition-root"]
    command = [str(tools.folder / "pg_dump"), *arguments]
    with _running(command, login.environment(), stdin=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        yield child.stdout


@contextmanager
def loading(tools: PostgresTools, login: Login) -> Iterator[IO[bytes]]:
    """Take a dump and load it in one transaction: all or nothing. Raises as `dumping`."""
    arguments = ["--no-owner", "--exit-on-error", "--single-transaction", "--no-password"]
    database = login.variables.get("PGDATABASE", "")
    command = [str(tools.folder / "pg_restore"), *arguments, f"--dbname={database}"]
    with _running(command, login.environment(), stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        yield child.stdin


@contextmanager
def as_text(tools: PostgresTools) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Take a dump and give its rows as COPY text; needs no server. Raises as `dumping`."""
    command = [str(tools.folder / "pg_restore"), "--data-only", "--file=-"]
    with _running(command, Login(variables={}).environment(), stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        yield child.stdin, child.stdout


@contextmanager
def _running(
    command: Sequence[str], environment: dict[str, str], *, stdin: int
) -> Iterator["subprocess.Popen[bytes]"]:
    with tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(  # noqa: S603 - a path of the operator's, arguments of ours
                command, stdin=stdin, stdout=subprocess.PIPE, stderr=errors, env=environment
            )
        except OSError as error:
            raise UnavailableError(f"cannot start {command[0]}: {error.strerror}") from error
        try:
            yield child
            _close(child)
            code = child.wait()
        except BrokenPipeError:
            code = child.wait() or -1
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None and not stream.closed:
                    _quietly_close(stream)
        if code != 0:
            raise UnavailableError(f"{Path(command[0]).name} failed: {_last_words(errors)}")


def _close(child: "subprocess.Popen[bytes]") -> None:
    """Say that nothing more comes, and take what is left."""
    if child.stdin is not None and not child.stdin.closed:
        child.stdin.close()
    if child.stdout is not None and not child.stdout.closed and child.stdout.read(1):
        raise InternalError("the program had more to say than was read")


def _quietly_close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        """It has said why already."""


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0)
    text = errors.read(_MAX_ERROR_BYTES).decode(errors="replace").strip()
    return text.splitlines()[0] if text else "it says nothing"
