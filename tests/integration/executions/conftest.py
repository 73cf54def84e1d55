"""A furnished Postgres of each supported version."""

from collections.abc import AsyncIterator

import pytest

from tests.fixtures.execution_worlds import PostgresWorld, postgres_world
from tests.fixtures.postgres import PostgresServer


@pytest.fixture
async def world(postgres_server: PostgresServer, database_name: str) -> AsyncIterator[PostgresWorld]:
    """The real stores over a fresh database."""
    async with postgres_world(postgres_server, database_name) as opened:
        yield opened
