"""Use cases of bundles: publish, show, put in force, go back. `ActivePolicy` loads what is in force."""

from collections.abc import Mapping
from typing import Final

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.ports import Database, Transaction
from control_plane.log.ports import Inclusion
from control_plane.paging import DEFAULT_PAGE_SIZE, Page
from control_plane.policy.active import require_signed
from control_plane.policy.bundles import (
    NEVER,
    Activated,
    Activation,
    BundleRecord,
    BundleRef,
    following,
    rolled_back,
)
from control_plane.policy.domain import Subject
from control_plane.policy.ports import BundleStore, PolicyEngines, PolicyInForce, PolicyKeys
from control_plane.policy.trial import load_rules, require_passed, run_probes, try_bundle
from shared.clock import Clock, Random
from shared.digests import Digest, parse_digest
from shared.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    RollbackError,
    WrongStateError,
)
from shared.ids import AUDIT_ENTRY, KeyId, TenantId, new_id
from shared.keyset import KeyPurpose
from shared.log_leaf import activation_subject, policy_fact
from shared.policy_bundle import verify_policy

POLICY_CHANNEL: Final = "af_policy"
"""Tells every replica that another policy may be in force."""


class PolicyLibrary:
    """What changes the installation's policy."""

    def __init__(
        self,
        *,
        database: Database,
        store: BundleStore,
        keys: PolicyKeys,
        engines: PolicyEngines,
        in_force: PolicyInForce,
        builtin: BundleRecord,
        home: TenantId,
        audit: AuditLog,
        log: Inclusion,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._store = store
        self._keys = keys
        self._engines = engines
        self._in_force = in_force
        self._builtin = builtin
        self._home = home
        self._audit = audit
        self._log = log
        self._clock = clock
        self._random = random

    async def publish(self, subject: Subject, envelope: bytes, files: Mapping[str, bytes]) -> BundleRecord:
        """Verify a bundle and store it; the same bytes again: what is stored. Nothing comes into force.

        Raises:
            PermissionDeniedError: The subject is of another tenant than the installation's own.
            VerificationError: One of the numbered checks of `verify_policy`.
            RollbackError: Its version is not above every published one.
            PolicyInvalidError: The engine in use does not take its rules.
            UnavailableError: The engine or the database is away.
        """
        self.require_home(subject)
        keys = (await self._keys.current()).keys_for(KeyPurpose.POLICY, self._clock.now())
        policy = verify_policy(envelope, files, keys=keys)
        record = BundleRecord(
            digest=policy.digest,
            name=policy.manifest.name,
            version=policy.manifest.version,
            comment=policy.manifest.comment,
            key_id=policy.key_id,
            published_by=subject.identity,
            published_at=self._clock.now(),
            envelope=policy.envelope,
            files=policy.files,
        )
        async with self._database.transaction() as tx:
            found = await self._store.find(tx, record.digest)
            if found is not None:
                return found
            await self._require_newer(tx, record)
        await load_rules(self._engines, record.files, record.digest)
        async with self._database.transaction() as tx:
            await self._require_newer(tx, record)
            if await self._store.add(tx, record):
                await self._record(tx, subject, "policy.published", record, {"key_id": record.key_id})
            stored = await self._store.find(tx, record.digest)
        assert stored is not None
        return stored

    async def get(self, subject: Subject, ref: BundleRef) -> BundleRecord:
        """Return a bundle; by an empty reference the one in force.

        Raises:
            PermissionDeniedError: The subject is of another tenant than the installation's own.
            NotFoundError: There is no such bundle.
        """
        self.require_home(subject)
        async with self._database.transaction() as tx:
            if not ref.digest and not ref.version:
                newest = await self._store.newest_activation(tx)
                return await self._bundle(tx, BundleRef(digest=self._digest_of(newest)))
            return await self._bundle(tx, ref)

    async def list(self, subject: Subject, *, page_size: int, page_token: str) -> Page[BundleRecord]:
        """Return a page without files, highest version first; a size of zero means 50.

        Raises:
            PermissionDeniedError: The subject is of another tenant than the installation's own.
            InvalidInputError: The page token is not one of ours.
        """
        self.require_home(subject)
        async with self._database.transaction() as tx:
            return await self._store.list(tx, page_size=page_size or DEFAULT_PAGE_SIZE, page_token=page_token)

    async def digest_in_force(self) -> Digest:
        """Return the digest of what is in force."""
        return (self._in_force.known() or await self._in_force.confirmed()).digest

    async def activate(self, subject: Subject, ref: BundleRef, *, expected: str) -> Activated:
        """Put a bundle in force that passes its own tests and the probes. Repeat: no effect.

        Raises:
            PermissionDeniedError: The subject is of another tenant than the installation's own.
            NotFoundError: There is no such bundle.
            ConflictError: Not `expected` is in force, or somebody else put another one in force meanwhile.
            KeyRevokedError, UnknownKeyError: The key that signed it counts no more: sign it anew.
            VerificationError: What is stored is not what was signed.
            PolicyInvalidError: The engine does not take it, or a test or probe fails.
            WrongStateError: It came with another build of the control plane.
        """
        self.require_home(subject)
        async with self._database.transaction() as tx:
            bundle = await self._bundle(tx, ref)
            newest = await self._store.newest_activation(tx)
        if self._digest_of(newest) == bundle.digest:
            return Activated(activation=newest or NEVER, bundle=bundle, previous_digest=bundle.digest)
        self._require_expected(newest, expected)
        if bundle.version:
            await require_signed(bundle, self._keys)
            (await self._keys.current()).require(KeyPurpose.POLICY, KeyId(bundle.key_id), self._clock.now())
        engine = await load_rules(self._engines, bundle.files, bundle.digest)
        require_passed(await try_bundle(self._engines, bundle.files, engine))
        following_one = following(newest, self._stored_digest(bundle), activated_by=subject.identity)
        return await self._put_in_force(subject, following_one, bundle, Digest(expected), "policy.activated")

    async def rollback(self, subject: Subject, *, expected: str) -> Activated:
        """Put in force what was so before; its own tests were passed then, only the probes run again.

        Raises:
            As `activate`; WrongStateError: There is none before.
        """
        self.require_home(subject)
        async with self._database.transaction() as tx:
            newest = await self._store.newest_activation(tx)
            if newest is None or newest.place == 0:
                raise WrongStateError("no policy was in force before this one")
            self._require_expected(newest, expected)
            before = await self._store.activation(tx, newest.place - 1)
            bundle = await self._bundle(tx, BundleRef(digest=self._digest_of(before)))
        if bundle.version:
            await require_signed(bundle, self._keys)
        engine = await load_rules(self._engines, bundle.files, bundle.digest)
        require_passed(await run_probes(engine))
        going_back = rolled_back(newest, before, activated_by=subject.identity)
        return await self._put_in_force(subject, going_back, bundle, Digest(expected), "policy.rolled_back")

    def require_home(self, subject: Subject) -> None:
        """Let subjects of the installation's own tenant pass.

        Raises:
            PermissionDeniedError: It is of another one.
        """
        if subject.tenant_id != self._home:
            raise PermissionDeniedError(
                f"the installation's policy is the business of tenant {self._home}",
                hint="ask an administrator of the installation",
            )

    async def _put_in_force(
        self, subject: Subject, activation: Activation, bundle: BundleRecord, previous: Digest, action: str
    ) -> Activated:
        async with self._database.transaction() as tx:
            stored = await self._store.add_activation(tx, activation)
            await self._record(
                tx, subject, action, bundle, {"number": stored.number, "previous_digest": previous}
            )
            tx.notify_after_commit(POLICY_CHANNEL)
        await self._log.include(_subjects(stored))
        # Here at once: who reads the answer finds it in force.
        await self._in_force.confirmed()
        return Activated(activation=stored, bundle=bundle, previous_digest=previous)

    async def _bundle(self, tx: Transaction, ref: BundleRef) -> BundleRecord:
        if ref.digest == self._builtin.digest:
            found = await self._store.find(tx, self._builtin.digest)
            return found or self._builtin
        if ref.digest:
            found = await self._store.find(tx, parse_digest(ref.digest))
        elif ref.version:
            found = await self._store.find_version(tx, ref.version)
        else:
            raise InvalidInputError("name the bundle by its digest or its version")
        if found is None or (ref.version and found.version != ref.version):
            raise NotFoundError(f"there is no policy {ref.digest or f'version {ref.version}'}")
        return found

    async def _require_newer(self, tx: Transaction, record: BundleRecord) -> None:
        highest = await self._store.highest_version(tx)
        if record.version <= highest:
            raise RollbackError(
                f"policy version {record.version} is not above {highest}, the highest one published",
                hint=f"sign it as version {highest + 1}; an older one is put in force by 'policy activate'",
            )

    def _digest_of(self, activation: Activation | None) -> Digest:
        if activation is None or activation.digest is None:
            return self._builtin.digest
        return activation.digest

    def _stored_digest(self, bundle: BundleRecord) -> Digest | None:
        if bundle.version:
            return bundle.digest
        if bundle.digest != self._builtin.digest:
            raise WrongStateError(f"policy {bundle.digest} came with another build or other settings")
        return None

    def _require_expected(self, newest: Activation | None, expected: str) -> None:
        current = self._digest_of(newest)
        if current != expected:
            raise ConflictError(
                f"policy {current} is in force, not {expected}", hint="look at it, then repeat the change"
            )

    async def _record(
        self,
        tx: Transaction,
        subject: Subject,
        action: str,
        bundle: BundleRecord,
        details: Mapping[str, str | int],
    ) -> None:
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=subject.tenant_id,
            actor=subject.identity,
            action=action,
            subject=bundle.digest,
            details={"name": bundle.name, "version": bundle.version, **details},
        )
        await self._audit.append(tx, [entry])


def _subjects(activation: Activation) -> list[str]:
    """Return what the log says of an activation; the policy that came with a build is logged by its use."""
    said = [activation_subject(activation.number)]
    return said if activation.digest is None else [*said, policy_fact(activation.digest).subject]
