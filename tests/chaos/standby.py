"""A synchronous standby of the world's Postgres, and its promotion. Decides nothing: the fault does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
from asyncpg.exceptions import CannotConnectNowError

from cli.stack.children import Child, ChildSpec, spawn
from cli.stack.postgres import SUPERUSER, PostgresFiles
from tests.e2e.stack import eventually

BACKUP_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby:
    """A Postgres that follows another."""

    files: PostgresFiles
    child: Child


async def follow(primary: PostgresFiles) -> Standby:
    """Copy the primary and follow it; from now on nothing is committed that the standby does not have."""
    files = replace(
        primary,
        data=primary.data.parent / "standby",
        socket=primary.socket.parent / "standby-run",
        log=primary.log.with_name("postgres-standby.log"),
    )
    await _as_postgres(files, "install", "-d", "-m", "0700", str(files.socket))
    source = f"host={primary.socket} user={SUPERUSER} application_name=standby"
    copying = ("-d", source, "-D", str(files.data), "-R", "-X", "stream", "-c", "fast")
    await _as_postgres(files, str(files.programs / "bin" / "pg_basebackup"), *copying)
    child = await spawn(_spec(files, str(files.programs / "bin" / "postgres"), *_options(files)))
    await eventually(lambda: _in_recovery(files), lambda found: found is True, "a standby that answers")
    async with connected(primary) as sql:
        await sql.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        await sql.execute("SELECT pg_reload_conf()")
    await eventually(lambda: _sync_state(primary), lambda found: found == "sync", "a synchronous standby")
    return Standby(files=files, child=child)


async def promote(standby: Standby) -> None:
    """Make the standby a primary."""
    async with connected(standby.files) as sql:
        await sql.execute("SELECT pg_promote()")
    await eventually(lambda: _in_recovery(standby.files), lambda found: found is False, "a promoted standby")


@asynccontextmanager
async def connected(files: PostgresFiles) -> AsyncIterator[Any]:
    """A connection of the owner for the length of the block."""
    connect: Any = asyncpg.connect  # not typed
    connection = await connect(files.url(), timeout=10)
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


def _options(files: PostgresFiles) -> list[str]:
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(files.socket),
        "unix_socket_permissions": "0700",
        "max_connections": "100",
        "timezone": "UTC",
    }
    return [
        "-D",
        str(files.data),
        *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
    ]


def _spec(files: PostgresFiles, *arguments: str) -> ChildSpec:
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
    return ChildSpec(
        name="standby", arguments=arguments, environment=environment, log=files.log, user=files.user
    )


async def _as_postgres(files: PostgresFiles, *arguments: str) -> None:
    child = await spawn(_spec(files, *arguments))
    async with asyncio.timeout(BACKUP_SECONDS):
        if await child.process.wait() != 0:
            raise child.died()


async def _in_recovery(files: PostgresFiles) -> bool | None:
    """Return whether it follows another; None while it does not answer."""
    try:
        async with connected(files) as sql:
            return bool(await sql.fetchval("SELECT pg_is_in_recovery()"))
    except (OSError, CannotConnectNowError):
        return None


async def _sync_state(primary: PostgresFiles) -> str:
    async with connected(primary) as sql:
        return str(await sql.fetchval("SELECT sync_state FROM pg_stat_replication"))
