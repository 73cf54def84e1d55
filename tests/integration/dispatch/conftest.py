"""One replica on one database."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.integration.dispatch.stage import Replica, replica, seed

QUICK = {
    "lease": timedelta(milliseconds=500),
    "heartbeat_every": timedelta(milliseconds=100),
    "poll_every": timedelta(milliseconds=100),
    "sweep_every": timedelta(milliseconds=100),
}


@pytest.fixture
async def one(owner_url: str, database_url: str) -> AsyncIterator[Replica]:
    await seed(owner_url)
    async with replica(database_url) as made:
        yield made


@pytest.fixture
async def quick(owner_url: str, database_url: str) -> AsyncIterator[Replica]:
    """The same with short leases: an attempt is lost half a second after the last word of it."""
    await seed(owner_url)
    async with replica(database_url, **QUICK) as made:
        yield made
