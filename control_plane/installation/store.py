"""Postgres behind `InstallationStore`. Runs as the schema's owner, except for reads."""

from datetime import datetime

from sqlalchemy import func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from control_plane.database.migrate import SERVICE_ROLE
from control_plane.database.notifications import Channel
from control_plane.database.ports import Transaction
from control_plane.database.tables import bootstrap_secrets, keys, keysets, role_bindings, tenants
from control_plane.database.tables import installation as installations
from control_plane.database.unit_of_work import connection_of
from control_plane.installation.ports import FoundInstallation, SigningKey, StoredKeyset
from shared.errors import ConflictError
from shared.ids import InstallationId, TenantId


class PostgresInstallationStore:
    """Implements `InstallationStore`."""

    async def found(self, tx: Transaction) -> FoundInstallation | None:
        """See `InstallationStore.found`."""
        query = select(installations.c.installation, installations.c.epoch)
        row = (await connection_of(tx).execute(query)).first()
        if row is None:
            return None
        return FoundInstallation(installation=InstallationId(row.installation), epoch=row.epoch)

    async def create(self, tx: Transaction, installation: InstallationId, tenant_id: TenantId) -> None:
        """See `InstallationStore.create`."""
        connection = connection_of(tx)
        await connection.execute(
            upsert(installations).values(singleton=True, installation=installation).on_conflict_do_nothing()
        )
        await connection.execute(upsert(tenants).values(tenant_id=tenant_id).on_conflict_do_nothing())

    async def bind_role(self, tx: Transaction, *, tenant_id: TenantId, identity: str, role: str) -> None:
        """See `InstallationStore.bind_role`."""
        binding = upsert(role_bindings).values(tenant_id=tenant_id, identity=identity, role=role)
        await connection_of(tx).execute(binding.on_conflict_do_nothing())

    async def add_bootstrap_secret(
        self, tx: Transaction, *, tenant_id: TenantId, secret_hash: str, expires_at: datetime
    ) -> None:
        """See `InstallationStore.add_bootstrap_secret`."""
        await connection_of(tx).execute(
            insert(bootstrap_secrets).values(
                tenant_id=tenant_id, secret_hash=secret_hash, expires_at=expires_at
            )
        )

    async def add_key(self, tx: Transaction, key: SigningKey) -> None:
        """See `InstallationStore.add_key`."""
        row = upsert(keys).values(key_id=key.key_id, purpose=key.purpose, spki_der=key.spki_der)
        await connection_of(tx).execute(row.on_conflict_do_nothing())

    async def newest_keyset(self, tx: Transaction) -> StoredKeyset | None:
        """See `InstallationStore.newest_keyset`."""
        newest = select(keysets.c.version, keysets.c.envelope).order_by(keysets.c.version.desc()).limit(1)
        row = (await connection_of(tx).execute(newest)).first()
        return None if row is None else StoredKeyset(version=row.version, envelope=row.envelope)

    async def add_keyset(self, tx: Transaction, keyset: StoredKeyset) -> None:
        """See `InstallationStore.add_keyset`."""
        try:
            await connection_of(tx).execute(
                insert(keysets).values(version=keyset.version, envelope=keyset.envelope)
            )
        except IntegrityError as error:
            raise ConflictError(f"keyset version {keyset.version} exists already") from error
        # Sent with the commit: this process ends at once and has no notifier of its own.
        await connection_of(tx).execute(select(func.pg_notify(str(Channel.KEYSETS), "")))

    async def set_service_password(self, tx: Transaction, verifier: str) -> None:
        """See `InstallationStore.set_service_password`."""
        # ALTER ROLE takes no parameters: the server quotes the literal itself.
        statement = await connection_of(tx).scalar(
            text("SELECT format('ALTER ROLE %I PASSWORD %L', CAST(:role AS text), CAST(:verifier AS text))"),
            {"role": SERVICE_ROLE, "verifier": verifier},
        )
        await connection_of(tx).exec_driver_sql(statement)
