"""Which failures of the driver mean "Postgres is away". Owns that list; never hides another error."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from shared.errors import DatabaseUnavailableError

_AWAY: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.exceptions.InterfaceError,
    # What a connection answers between the server's farewell and the end of its socket.
    asyncpg.exceptions.InternalClientError,
    PoolTimeoutError,
    OSError,
    TimeoutError,
)
_PASSWORD: Final = re.compile(r"(?<=:)[^:/@]+(?=@)")
_MAX_MESSAGE_CHARS: Final = 300


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn connection failures, time-outs and refusals of Postgres into one typed error.

    Raises:
        DatabaseUnavailableError: Postgres is away, too slow, full, or refuses the login. The fate of a
            statement that was under way is unknown.
    """
    try:
        yield
    except DBAPIError as error:
        # SQLAlchemy chains the driver's own error below its adapter's.
        cause = error.orig.__cause__ if error.orig is not None else None
        if isinstance(cause, _AWAY) or error.connection_invalidated:
            raise away(cause or error) from error
        raise
    except _AWAY as error:
        raise away(error) from error


def away(error: BaseException) -> DatabaseUnavailableError:
    """Return the typed error for a driver's error: one line, no password."""
    if isinstance(error, PoolTimeoutError):
        return DatabaseUnavailableError(
            "no connection to postgres was free in time: this replica has too much to do",
            hint="try again; if it lasts, add a replica, or connections (AF_CONTROL_DATABASE_CONNECTIONS)",
        )
    detail = _PASSWORD.sub("***", " ".join(str(error).split()))[:_MAX_MESSAGE_CHARS]
    return DatabaseUnavailableError(f"postgres is not available: {detail or type(error).__name__}")
