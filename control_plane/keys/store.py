"""Postgres behind `KeyStore`: as the installation keeps keys and keysets, and the newest statement."""

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert

from control_plane.database.notifications import Channel
from control_plane.database.ports import Transaction
from control_plane.database.tables import freshness
from control_plane.database.unit_of_work import connection_of
from control_plane.installation.ports import StoredKeyset
from control_plane.installation.store import PostgresInstallationStore
from control_plane.keys.ports import StoredStatement


class PostgresKeyStore(PostgresInstallationStore):
    """Implements `KeyStore`."""

    async def add_keyset(self, tx: Transaction, keyset: StoredKeyset) -> None:
        """See `KeyStore.add_keyset`."""
        await super().add_keyset(tx, keyset)
        tx.notify_after_commit(Channel.KEYSETS)

    async def newest_statement(self, tx: Transaction) -> StoredStatement | None:
        """See `KeyStore.newest_statement`."""
        row = (await connection_of(tx).execute(select(freshness.c.envelope, freshness.c.issued_at))).first()
        return None if row is None else StoredStatement(envelope=row.envelope, issued_at=row.issued_at)

    async def put_statement(self, tx: Transaction, statement: StoredStatement) -> bool:
        """See `KeyStore.put_statement`."""
        values = {"envelope": statement.envelope, "issued_at": statement.issued_at}
        row = upsert(freshness).values(singleton=True, **values)
        row = row.on_conflict_do_update(
            index_elements=["singleton"], set_=values, where=freshness.c.issued_at < statement.issued_at
        )
        stored = (await connection_of(tx).execute(row)).rowcount == 1
        if stored:
            tx.notify_after_commit(Channel.KEYSETS)
        return stored
