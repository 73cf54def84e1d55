"""Lists keys, makes them in custody, puts keysets in force and passes statements of freshness on.

Signs nothing and decides nothing about trust: the root key does, and it is elsewhere. Knows no gRPC, no SQL.
"""

from datetime import timedelta
from typing import Final

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.ports import Database, Transaction
from control_plane.installation.domain import DEFAULT_TENANT
from control_plane.installation.ports import SigningKey, StoredKeyset
from control_plane.keys.domain import (
    CUSTODY,
    CustodyKey,
    KeyListing,
    KeyReport,
    KeyState,
    NewestKeyset,
)
from control_plane.keys.ports import (
    Acknowledgements,
    KeyCustody,
    KeyObserver,
    KeyStore,
    Signing,
    StoredStatement,
)
from shared.clock import Clock, Random
from shared.errors import ConflictError, InvalidInputError, KeyUnavailableError, UnavailableError
from shared.freshness import verify_statement
from shared.ids import AUDIT_ENTRY, InstallationId, new_id
from shared.keyset import KeyPurpose, Keyset, KeysetEntry
from shared.keyset_changes import differences, undone
from shared.roots import RootedKeyset, encode_relayed, verify_relayed
from shared.signatures import PublicKey

MAX_SKEW: Final = timedelta(seconds=30)
"""How far a statement of freshness may seem to come from the future."""
MAX_DETAILS: Final = 16
"""Changes that an audit entry names one by one."""


class KeyService:
    """The use cases of keys."""

    def __init__(
        self,
        *,
        database: Database,
        store: KeyStore,
        custody: KeyCustody,
        signing: Signing,
        sessions: Acknowledgements,
        audit: AuditLog,
        root: PublicKey,
        installation: InstallationId,
        observer: KeyObserver,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._store = store
        self._custody = custody
        self._signing = signing
        self._sessions = sessions
        self._audit = audit
        self._root = root
        self._installation = installation
        self._observer = observer
        self._clock = clock
        self._random = random

    async def list_keys(self) -> KeyListing:
        """Return every key of keyset and custody; a custodian that does not answer is told, not raised.

        Raises:
            UnavailableError: There is no keyset, or it cannot be read.
        """
        async with self._database.transaction() as tx:
            keyset = (await self._newest(tx)).keyset
            statement = await self._store.newest_statement(tx)
        held: list[CustodyKey] = []
        problem = ""
        try:
            for purpose in CUSTODY:
                held += await self._custody.keys(purpose)
        except KeyUnavailableError as error:
            problem = str(error)
        return KeyListing(
            keys=tuple(self._reports(keyset, held)),
            keyset_version=keyset.version,
            acknowledged_version=self._sessions.acknowledged() or 0,
            custody_problem=problem,
            fresh_at=None if statement is None else statement.issued_at,
        )

    async def newest(self) -> NewestKeyset:
        """Return the newest keyset and statement, as they were signed.

        Raises:
            UnavailableError: There is no keyset, or it cannot be read.
        """
        async with self._database.transaction() as tx:
            stored = await self._stored(tx)
            statement = await self._store.newest_statement(tx)
        return NewestKeyset(
            version=stored.version,
            envelope=stored.envelope,
            freshness=b"" if statement is None else statement.envelope,
        )

    async def publish(self, actor: str, envelope: bytes) -> int:
        """Put the next keyset in force for this and every other replica; returns its version.

        1. The root key of the newest signed it, or one to which that root hands over in it; it is well formed
           and of this installation (`verify_relayed`).
        2. It is the newest one already: nothing changes; or
        3. its version is one more than the newest, and its epoch the same.
        4. It takes no revocation back.

        Raises:
            VerificationError: Check 1.
            ConflictError: Check 3.
            InvalidInputError: Check 4.
        """
        async with self._database.transaction() as tx:
            held = await self._newest(tx)
            newest = held.keyset
            found = verify_relayed(
                envelope,
                root_keys=held.root_keys,
                minimum_version=1,
                installation=self._installation,
                held=held.relayed.handovers,
            )
            offered = found.keyset
            if held.relayed.envelope == found.relayed.envelope:
                return newest.version
            _require_next(newest, offered)
            # Whoever signs may leave out how the root came to be in force: nodes may pin an earlier one.
            relayed = encode_relayed(found.relayed)
            await self._store.add_keyset(tx, StoredKeyset(version=offered.version, envelope=relayed))
            for entry in offered.entries:
                await self._store.add_key(tx, _signing_key(entry.purpose, entry.key))
            changes = differences(newest, offered)
            facts = {f"change_{number}": line for number, line in enumerate(changes[:MAX_DETAILS], 1)}
            await self._record(tx, actor, "keyset.published", str(offered.version), facts)
        return offered.version

    async def create(self, actor: str, purpose: KeyPurpose) -> KeyReport:
        """Make a key in custody for the next keyset, or return the newest one that was made for it before.

        Raises:
            InvalidInputError: Keys of this purpose are not kept here.
            KeyUnavailableError: The custodian does not answer, or refuses.
        """
        async with self._database.transaction() as tx:
            keyset = (await self._newest(tx)).keyset
        held = await self._custody.keys(purpose)
        listed = {entry.key_id for entry in keyset.entries}
        if held and held[-1].key_id not in listed:
            return self._report(held[-1].public, purpose, held[-1], None)
        made = await self._custody.create(purpose)
        async with self._database.transaction() as tx:
            await self._store.add_key(tx, _signing_key(purpose, made.public))
            facts = {"purpose": str(purpose), "custody": f"{made.name} v{made.version}"}
            await self._record(tx, actor, "key.created", made.key_id, facts)
        return self._report(made.public, purpose, made, None)

    async def put_freshness(self, envelope: bytes) -> bool:
        """Keep a statement of freshness and tell every replica; returns whether it was newer.

        1. A freshness key of the newest keyset signed it, for this installation (`verify_statement`).
        2. It names no keyset that does not exist.
        3. It is at most 30 s from the future.

        Raises:
            VerificationError: Check 1.
            InvalidInputError: Checks 2 and 3.
        """
        now = self._clock.now()
        async with self._database.transaction() as tx:
            keyset = (await self._newest(tx)).keyset
            keys = keyset.keys_for(KeyPurpose.FRESHNESS, now)
            statement = verify_statement(envelope, keys=keys, installation=self._installation)
            if statement.keyset_version > keyset.version:
                raise InvalidInputError(
                    f"check 2: statement names keyset {statement.keyset_version}, newest is {keyset.version}"
                )
            if statement.issued_at - now > MAX_SKEW:
                raise InvalidInputError(f"check 3: statement was made at {statement.issued_at}, it is {now}")
            stored = StoredStatement(envelope=envelope, issued_at=statement.issued_at)
            accepted = await self._store.put_statement(tx, stored)
        if accepted:
            self._observer.statement(statement.issued_at)
        return accepted

    # --- what both need

    async def _stored(self, tx: Transaction) -> StoredKeyset:
        stored = await self._store.newest_keyset(tx)
        if stored is None:
            raise UnavailableError("the database holds no keyset", hint="run 'agentfactory init'")
        return stored

    async def _newest(self, tx: Transaction) -> RootedKeyset:
        return verify_relayed(
            (await self._stored(tx)).envelope,
            root_keys={self._root.key_id: self._root},
            minimum_version=1,
            installation=self._installation,
        )

    def _reports(self, keyset: Keyset, held: list[CustodyKey]) -> list[KeyReport]:
        by_id = {(key.purpose, key.key_id): key for key in held}
        reports = [
            self._report(entry.key, entry.purpose, by_id.pop((entry.purpose, entry.key_id), None), entry)
            for entry in keyset.entries
        ]
        return reports + [self._report(key.public, key.purpose, key, None) for key in by_id.values()]

    def _report(
        self, public: PublicKey, purpose: KeyPurpose, held: CustodyKey | None, entry: KeysetEntry | None
    ) -> KeyReport:
        return KeyReport(
            key_id=public.key_id,
            purpose=purpose,
            state=self._state(entry),
            public=public,
            custody_name="" if held is None else held.name,
            custody_version=0 if held is None else held.version,
            entry=entry,
        )

    def _state(self, entry: KeysetEntry | None) -> KeyState:
        now, signing = self._clock.now(), self._signing.key
        if entry is None:
            return KeyState.PENDING
        if entry.is_revoked(now):
            return KeyState.REVOKED
        if entry.not_before > now:
            return KeyState.FUTURE
        if not entry.is_valid(now):
            return KeyState.ENDED
        is_signing = signing is not None and (signing.key_id, signing.purpose) == (
            entry.key_id,
            entry.purpose,
        )
        return KeyState.SIGNING if is_signing else KeyState.LISTED

    async def _record(
        self, tx: Transaction, actor: str, action: str, subject: str, facts: dict[str, str]
    ) -> None:
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=DEFAULT_TENANT,
            actor=actor,
            action=action,
            subject=subject,
            details=facts,
        )
        await self._audit.append(tx, [entry])


def _require_next(newest: Keyset, offered: Keyset) -> None:
    if offered.version != newest.version + 1:
        raise ConflictError(
            f"check 3: keyset {offered.version} does not follow {newest.version}, the newest",
            hint="make the change again, from the newest keyset: agentfactory keys keyset show",
        )
    if offered.epoch != newest.epoch:
        raise ConflictError(
            f"check 3: keyset is of epoch {offered.epoch}, the installation of {newest.epoch}"
        )
    if problem := undone(newest, offered):
        raise InvalidInputError(f"check 4: {problem}; a revocation is not taken back", hint="make a new key")


def _signing_key(purpose: KeyPurpose, key: PublicKey) -> SigningKey:
    return SigningKey(key_id=key.key_id, purpose=purpose, spki_der=key.spki_der)
