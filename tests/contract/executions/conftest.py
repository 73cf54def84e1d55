"""One world per backend: the fake and every supported Postgres."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.conftest import POSTGRES_VERSIONS
from tests.fixtures.execution_worlds import FakeWorld, World, postgres_world
from tests.fixtures.postgres import PostgresServer


@pytest.fixture(params=["fake", *POSTGRES_VERSIONS])
def backend(request: pytest.FixtureRequest) -> Iterator[tuple[PostgresServer, str] | None]:
    """Nothing for the fake, else a server and the name of a fresh database on it."""
    if request.param == "fake":
        yield None
        return
    server: PostgresServer = request.getfixturevalue(request.param)
    name = server.new_database()
    yield server, name
    server.drop_database(name)


@pytest.fixture
async def world(backend: tuple[PostgresServer, str] | None) -> AsyncIterator[World]:
    """The world of one backend."""
    if backend is None:
        yield FakeWorld()
        return
    async with postgres_world(*backend) as opened:
        yield opened
