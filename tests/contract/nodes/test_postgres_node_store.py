"""Postgres keeps what the suite asks for, as the service role."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from control_plane.audit.store import PostgresAuditStore
from control_plane.database.engine import create_engine
from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.nodes.store import PostgresNodeStore
from tests.contract.nodes.node_store_suite import NodeStoreSuite
from tests.contract.nodes.stage import Stage, Told


class TestPostgresNodeStore(NodeStoreSuite):
    @pytest.fixture
    async def stage(self, owner_url: str, database_url: str) -> AsyncIterator[Stage]:
        connection = await asyncpg.connect(owner_url, timeout=10)
        try:
            await connection.execute(
                "INSERT INTO tenants (tenant_id) VALUES ('default'), ('other') ON CONFLICT DO NOTHING"
            )
        finally:
            await connection.close()
        told = Told()
        database = PostgresDatabase(create_engine(database_url, application="test"), notifier=told)
        nodes = PostgresNodeStore(database=database, audit=PostgresAuditStore(database))
        yield Stage(nodes=nodes, told=told, database=database)
        await database.close()
