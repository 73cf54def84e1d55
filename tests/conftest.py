"""Fixtures that several tiers share. Postgres starts once per session, and only when a test asks for it."""

from collections.abc import Iterator

import pytest

from shared.logs import LogStyle, configure_logging
from tests.fixtures.postgres import (
    SERVICE,
    PostgresServer,
    postgres_15_binaries,
    postgres_18_binaries,
    running_server,
)

POSTGRES_VERSIONS = ("postgres_18", "postgres_15")


@pytest.fixture(autouse=True)
def product_logging() -> None:
    """Log as the product does, whichever test ran before: structlog's own default draws tracebacks with locals.

    One of those takes a second on a busy machine.
    """
    configure_logging("INFO", LogStyle.JSON)


@pytest.fixture(scope="session")
def postgres_18() -> Iterator[PostgresServer]:
    """A migrated server of the newest supported version."""
    binaries = postgres_18_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL 18 is not installed")
    with running_server(binaries) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_15() -> Iterator[PostgresServer]:
    """A migrated server of the oldest supported version."""
    binaries = postgres_15_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL 15 is not installed")
    with running_server(binaries) as server:
        yield server


@pytest.fixture(params=POSTGRES_VERSIONS)
def postgres_server(request: pytest.FixtureRequest) -> PostgresServer:
    """Each supported version in turn."""
    server: PostgresServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def database_name(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh, migrated database."""
    name = postgres_server.new_database()
    yield name
    postgres_server.drop_database(name)


@pytest.fixture
def owner_url(postgres_server: PostgresServer, database_name: str) -> str:
    """Its URL for whoever migrates and installs."""
    return postgres_server.url(database_name)


@pytest.fixture
def database_url(postgres_server: PostgresServer, database_name: str) -> str:
    """Its URL for the service, which may do less."""
    return postgres_server.url(database_name, user=SERVICE)


@pytest.fixture
def empty_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL, for its owner, of a database without a single table."""
    name = postgres_server.empty_database()
    yield postgres_server.url(name)
    postgres_server.drop_database(name)
