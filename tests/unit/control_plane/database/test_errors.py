"""Which errors of the driver mean that Postgres is away, and what the typed error says."""

import asyncpg
import pytest
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from control_plane.database.errors import database_errors
from shared.errors import DatabaseUnavailableError


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("refused"),
        TimeoutError(),
        asyncpg.AdminShutdownError("terminating connection due to administrator command"),
        asyncpg.exceptions.ConnectionDoesNotExistError("connection was closed"),
        asyncpg.exceptions.InterfaceError("connection is closed"),
        # Met when a statement was sent between the server's farewell and the end of the socket.
        asyncpg.exceptions.InternalClientError(
            "cannot switch to state 12; another operation (2) is in progress"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_absent_postgres_is_one_typed_error(error):
    with pytest.raises(DatabaseUnavailableError, match="postgres is not available"), database_errors():
        raise error


def test_a_busy_pool_says_so_and_not_that_postgres_is_away():
    with pytest.raises(DatabaseUnavailableError) as caught, database_errors():
        raise PoolTimeoutError("QueuePool limit of size 8 overflow 0 reached")
    assert "QueuePool" not in str(caught.value)
    assert "AF_CONTROL_DATABASE_CONNECTIONS" in caught.value.hint


def test_an_error_of_ours_is_not_called_an_absence():
    with pytest.raises(asyncpg.UndefinedTableError), database_errors():
        raise asyncpg.UndefinedTableError("no such table")


def test_no_password_is_repeated():
    with pytest.raises(DatabaseUnavailableError) as caught, database_errors():
        raise OSError("cannot reach postgresql://af_service:geheim@db:5432/agentfactory")
    assert "geheim" not in str(caught.value)
