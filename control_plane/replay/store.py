"""What executions were made of, in Postgres."""

from sqlalchemy import select

from control_plane.database.tables import artifacts, executions
from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.replay.domain import Ingredients
from shared.digests import Digest
from shared.errors import NotFoundError
from shared.ids import ExecutionId, TenantId


class PostgresIngredientStore:
    """Implements `IngredientStore`."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def find(self, tenant_id: TenantId, execution_id: ExecutionId) -> Ingredients:
        """See `IngredientStore.find`."""
        query = (
            select(executions.c.module_digest, executions.c.parameters, artifacts.c.size_bytes)
            .join(artifacts, artifacts.c.module_digest == executions.c.module_digest)
            .where(executions.c.tenant_id == tenant_id, executions.c.execution_id == execution_id)
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise NotFoundError(f"there is no execution {execution_id}")
        return Ingredients(
            module_digest=Digest(row.module_digest),
            module_bytes=row.size_bytes,
            parameters=bytes(row.parameters),
        )
