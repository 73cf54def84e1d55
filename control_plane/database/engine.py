"""The one way to Postgres: pool, time-outs and session settings. Holds no query and no table."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.errors import SettingsError

_DRIVER: Final = "postgresql+asyncpg"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolBounds:
    """Every bound on the way to Postgres."""

    connections: int = 8
    """Most connections of one process, the listening one not counted."""
    wait: timedelta = timedelta(seconds=2)
    """For a free connection, before the caller is told that Postgres is not available."""
    connect: timedelta = timedelta(seconds=5)
    statement: timedelta = timedelta(seconds=10)
    lock: timedelta = timedelta(seconds=5)
    idle_in_transaction: timedelta = timedelta(seconds=15)


def database_url(url: str) -> URL:
    """Return a libpq-style or SQLAlchemy URL as one for our driver.

    Raises:
        SettingsError: It is no URL of a Postgres database.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # the second for a port that is no number
        raise SettingsError("the database url is not a url", hint=_URL_HINT) from error
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise SettingsError(f"the database url names {parsed.drivername!r}, not postgresql", hint=_URL_HINT)
    return parsed.set(drivername=_DRIVER)


_URL_HINT: Final = (
    "write it as postgresql://user:password@host:5432/database; a primary and its standbys as"
    " postgresql://user:password@/database?host=a:5432&host=b:5432&target_session_attrs=primary"
)


def create_engine(
    url: str, *, application: str, bounds: PoolBounds | None = None, role: str = ""
) -> AsyncEngine:
    """Return an engine; it connects when it is first used, and works as `role` (empty: as it logs in).

    Raises:
        SettingsError: `url` is no URL of a Postgres database.
    """
    bounds = bounds or PoolBounds()
    return create_async_engine(
        database_url(url),
        pool_size=bounds.connections,
        max_overflow=0,
        pool_timeout=bounds.wait.total_seconds(),
        # A broken connection shows when it is used; the use is retried or reported, not pinged before.
        pool_pre_ping=False,
        pool_use_lifo=True,
        # Parameters are bodies and salts: no error message and no log line may show them.
        hide_parameters=True,
        connect_args={
            "timeout": bounds.connect.total_seconds(),
            "command_timeout": (bounds.statement + bounds.lock).total_seconds(),
            "server_settings": session_settings(application, bounds) | ({"role": role} if role else {}),
        },
    )


def session_settings(application: str, bounds: PoolBounds) -> dict[str, str]:
    """Return the settings of a session at the server."""
    return {
        "application_name": application,
        "timezone": "UTC",
        "statement_timeout": _ms(bounds.statement),
        "lock_timeout": _ms(bounds.lock),
        "idle_in_transaction_session_timeout": _ms(bounds.idle_in_transaction),
        # Our statements are short: compiling them costs more than it saves.
        "jit": "off",
        # Parameters are arrays of unknown length: a plan made for one call is no better than a kept one.
        "plan_cache_mode": "force_generic_plan",
        # A kept plan may be older than what is in the tables: one that was made while they were empty reads
        # them from end to end, and costs more with every execution until they are analysed. Our statements
        # find few rows by keys, so plans are held to indexes and loops over them.
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
    }


def _ms(duration: timedelta) -> str:
    return str(round(duration / timedelta(milliseconds=1)))
