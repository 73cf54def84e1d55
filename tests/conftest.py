"""Fixtures that several tiers share. Postgres starts once per session, and only when a test asks for it."""

from collections.abc import Iterator

import pytest

from tests.fixtures.postgres import (
    PostgresServer,
    postgres_15_binaries,
    postgres_18_binaries,
    running_server,
)

_BINARIES = {"pg18": postgres_18_binaries, "pg15": postgres_15_binaries}


@pytest.fixture(scope="session", params=list(_BINARIES))
def postgres_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A migrated server of each supported version that this machine has."""
    binaries = _BINARIES[request.param]()
    if binaries is None:
        pytest.skip(f"{request.param} is not installed")
    with running_server(binaries) as server:
        yield server


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
    return postgres_server.url(database_name, user="af_service")


@pytest.fixture
def empty_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL, for its owner, of a database without a single table."""
    name = postgres_server.empty_database()
    yield postgres_server.url(name)
    postgres_server.drop_database(name)
