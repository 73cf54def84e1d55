"""Makes, rotates and destroys keys of tenants' bodies. No transaction is open across a custodian."""

from control_plane.audit.domain import Fact, NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.body_keys.domain import (
    BODY_KEY,
    KEY_BYTES,
    BodyKey,
    BodyKeyId,
    wrapping_name,
)
from control_plane.body_keys.ports import BodyKeyStore, KeyWrapping
from control_plane.body_keys.service import BodyKeyring
from control_plane.database.ports import Database, Transaction
from shared.clock import Clock, Random
from shared.errors import InvalidInputError, KeyUnavailableError, WrongStateError
from shared.ids import AUDIT_ENTRY, TenantId, new_id


class BodyKeyAdministration:
    """What administrators do about keys of bodies; who they are was asked before."""

    def __init__(
        self,
        *,
        database: Database,
        store: BodyKeyStore,
        wrapping: KeyWrapping,
        keyring: BodyKeyring,
        audit: AuditLog,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._store = store
        self._wrapping = wrapping
        self._keyring = keyring
        self._audit = audit
        self._clock = clock
        self._random = random

    async def ensure(self, tenant_id: TenantId, *, actor: str) -> None:
        """Make a key for new bodies unless there is one.

        Raises:
            NotFoundError, KeyUnavailableError, ConflictError: As `rotate`.
        """
        if not await self._store.has_newest(tenant_id):
            await self.rotate(tenant_id, actor=actor)

    async def noticed(self) -> None:
        """Believe from now on what is stored of which tenants encrypt."""
        await self._keyring.read()

    async def rotate(self, tenant_id: TenantId, *, actor: str) -> BodyKeyId:
        """Make the key that new bodies of the tenant are sealed with; those before open what they sealed.

        Raises:
            NotFoundError: There is no such tenant.
            KeyUnavailableError: The custodian does not answer, or refuses; nothing has changed.
            ConflictError: The tenant's keys were erased meanwhile.
        """
        generation = await self._store.generation(tenant_id)
        name = wrapping_name(tenant_id, generation)
        key_id = new_id(BODY_KEY, self._clock, self._random)
        await self._wrapping.prepare(name)
        wrapped = await self._wrapping.wrap(name, key_id, self._random.token_bytes(KEY_BYTES))
        key = BodyKey(body_key_id=key_id, tenant_id=tenant_id, generation=generation, wrapped=wrapped)
        async with self._database.transaction() as tx:
            await self._store.add(tx, key)
            await self._record(tx, tenant_id, actor, "tenant.body_key_made", body_key_id=key_id)
        await self._keyring.read()
        return key_id

    async def erase(self, tenant_id: TenantId, *, actor: str, reason: str) -> int:
        """Destroy all keys of a tenant; returns how many. Nothing reads what they sealed, no backup either.

        1. The wrapped keys are forgotten, on record, in one transaction.
        2. Then the custodian destroys what they were wrapped with. A repeat does this again.

        Raises:
            InvalidInputError: The reason is blank.
            NotFoundError: There is no such tenant.
            WrongStateError: Executions of the tenant have not ended.
            KeyUnavailableError: Step 1 is done and step 2 is not.
        """
        if not reason.strip():
            raise InvalidInputError("a reason is needed", hint="say who asked for it, and why")
        async with self._database.transaction() as tx:
            if await self._store.has_live_executions(tx, tenant_id):
                raise WrongStateError(
                    f"executions of tenant {tenant_id} have not ended",
                    hint="stop the tenant first: agentfactory stop create",
                )
            erased = await self._store.destroy(tx, tenant_id)
            if erased.keys:
                await self._record(
                    tx,
                    tenant_id,
                    actor,
                    "tenant.body_keys_erased",
                    reason=reason,
                    body_key_ids=" ".join(erased.keys),
                )
        self._keyring.forget(tenant_id)
        await self._keyring.read()
        try:
            for generation in range(erased.generation):
                await self._wrapping.destroy(wrapping_name(tenant_id, generation))
        except KeyUnavailableError as error:
            raise KeyUnavailableError(
                f"the database forgot the keys, their custodian did not destroy its own: {error}",
                hint="repeat the same command until it succeeds",
            ) from error
        return len(erased.keys)

    async def _record(
        self, tx: Transaction, tenant_id: TenantId, actor: str, action: str, **details: Fact
    ) -> None:
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=tenant_id,
            actor=actor,
            action=action,
            subject=tenant_id,
            details=details,
        )
        await self._audit.append(tx, [entry])
