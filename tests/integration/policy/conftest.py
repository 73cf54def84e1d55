"""A fresh database with two tenants, and replicas over it."""

import asyncio

import pytest

from tests.integration.policy.replicas import run_as_owner, running_replica


@pytest.fixture
def policy_database(postgres_18):
    name = postgres_18.new_database()
    tenants = "INSERT INTO tenants (tenant_id) VALUES ('default'), ('other')"
    asyncio.run(run_as_owner(postgres_18, name, tenants))
    yield name
    postgres_18.drop_database(name)


@pytest.fixture
async def replica(postgres_18, policy_database):
    async with running_replica(postgres_18, policy_database) as running:
        yield running


@pytest.fixture
async def second(postgres_18, policy_database):
    async with running_replica(postgres_18, policy_database) as running:
        yield running
