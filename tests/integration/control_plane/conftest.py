"""A registry on a fresh database."""

import pytest

from tests.integration.control_plane.registry import open_registry


@pytest.fixture
def registry_database(postgres_18):
    name = postgres_18.new_database()
    yield name
    postgres_18.drop_database(name)


@pytest.fixture
async def registry(postgres_18, registry_database):
    async with open_registry(postgres_18, registry_database) as opened:
        yield opened
