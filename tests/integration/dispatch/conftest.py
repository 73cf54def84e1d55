"""One replica on one database."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.dispatch.stage import Replica, replica, seed


@pytest.fixture
async def one(owner_url: str, database_url: str) -> AsyncIterator[Replica]:
    await seed(owner_url)
    async with replica(database_url) as made:
        yield made
