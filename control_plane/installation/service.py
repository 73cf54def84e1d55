"""Makes an installation, completes a half-made one, and lets publishers in. Serves nothing.

Files come first and the database second: a crash between them leaves keys without rows, and a repeat adds the
rows. Called by the command line through `control_plane/setup.py`, never by the running control plane.
"""

import base64
import hashlib
from dataclasses import replace
from datetime import datetime, timedelta

from control_plane.audit.domain import SYSTEM_ACTOR, NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.ports import Database, Transaction
from control_plane.installation import files
from control_plane.installation.authorities import InstallationAuthority, pinned_pem
from control_plane.installation.domain import (
    BOOTSTRAP_PREFIX,
    BOOTSTRAP_SECRET_BYTES,
    DEFAULT_TENANT,
    Initialized,
    InitRequest,
)
from control_plane.installation.keysets import first_keyset, with_log_key, with_publisher
from control_plane.installation.ports import InstallationStore, SigningKey, StoredKeyset
from control_plane.installation.scram import SALT_BYTES, verifier
from shared.clock import Clock, Random
from shared.errors import ConflictError, NotFoundError, WrongStateError
from shared.ids import AUDIT_ENTRY, InstallationId, new_id
from shared.key_files import read_private_key
from shared.keyset import KeyPurpose, Keyset, sign_keyset
from shared.local_tokens import identity_of
from shared.paths import InstallationPaths
from shared.roots import RelayedKeyset, RootedKeyset, encode_relayed, verify_relayed
from shared.signatures import FileSigner, PrivateKey, PublicKey


class InstallationService:
    """The use cases of `agentfactory init` and `agentfactory keys`."""

    def __init__(
        self,
        *,
        database: Database,
        store: InstallationStore,
        audit: AuditLog,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._store = store
        self._audit = audit
        self._clock = clock
        self._random = random

    async def initialize(self, request: InitRequest) -> Initialized:
        """Make what is missing of an installation. Repeat: renews certificates near their end, no more.

        Raises:
            ConflictError: Data folder and database belong to different installations.
            KeyFileModeError: A key file may be read by others.
            DatabaseUnavailableError: Postgres is away.
        """
        paths, installation = request.paths, request.installation
        await self._refuse_foreign(paths, installation)
        keys = files.ensure_keys(paths)
        files.ensure_authority(paths, installation, self._clock)
        authority = InstallationAuthority(paths, self._clock)
        files.ensure_server_certificate(
            paths, installation, authority.of_server(), server_names=request.server_names, clock=self._clock
        )
        admin = files.ensure_client_certificate(
            paths, installation, authority.issuing(), name=request.admin, clock=self._clock
        )
        files.ensure_token_issuer(paths)
        pinned = files.ensure_root_pin(paths, keys.root.public)
        files.write_trust(paths, installation, pinned, pinned_pem(paths))
        async with self._database.transaction() as tx:
            created = await self._store.found(tx) is None
            await self._store.create(tx, installation, DEFAULT_TENANT)
            for identity in (admin, identity_of(request.admin)):
                await self._store.bind_role(tx, tenant_id=DEFAULT_TENANT, identity=identity, role="admin")
            for purpose, key in (
                ("root", pinned),
                ("order", keys.order.public),
                ("policy", keys.policy.public),
                ("log", keys.log.public),
            ):
                await self._store.add_key(
                    tx, SigningKey(key_id=key.key_id, purpose=purpose, spki_der=key.spki_der)
                )
            if request.service_password is not None:
                await self._set_service_password(tx, request.service_password)
            keyset = await self._first_keyset(tx, installation, keys, pinned)
            secret = await self._bootstrap_secret(tx, request.bootstrap_life) if created else None
            if created:
                await self._record(tx, "installation.initialized", installation, {"admin": admin})
        files.write_public_file(paths.keyset, keyset.envelope)
        files.write_description(
            paths,
            files.InstallationDescription(
                installation=installation,
                root_key_id=pinned.key_id,
                order_key_id=keys.order.key_id,
                server_names=request.server_names,
            ),
        )
        return Initialized(
            installation=installation,
            paths=paths,
            root_key_id=pinned.key_id,
            order_key_id=keys.order.key_id,
            keyset_version=keyset.version,
            admin_identity=admin,
            created=created,
            bootstrap_secret=secret,
        )

    async def set_service_password(self, password: str) -> None:
        """Set what the service's database role logs in with.

        Raises:
            InvalidInputError: As `scram.verifier`.
        """
        async with self._database.transaction() as tx:
            await self._set_service_password(tx, password)

    async def _set_service_password(self, tx: Transaction, password: str) -> None:
        salt = self._random.token_bytes(SALT_BYTES)
        await self._store.set_service_password(tx, verifier(password, salt))

    async def add_publisher(self, paths: InstallationPaths, publisher: PublicKey) -> int:
        """Trust a publisher: sign the next keyset with the root key. Returns the keyset's version.

        Repeat: the version that trusts the key already.

        Raises:
            NotFoundError: There is no installation here, or the root key is kept elsewhere.
            InvalidInputError: The key is not of a kind that publishers may have (RSA).
            ConflictError: Somebody else made a keyset meanwhile.
            WrongStateError: The key was trusted once, and has ended or was revoked; or the root key here is
                not the one in force.
        """
        root = read_private_key(paths.root_key)
        pinned = files.read_root_key(paths)
        async with self._database.transaction() as tx:
            stored = await self._store.newest_keyset(tx)
            found = await self._store.found(tx)
            if stored is None or found is None:
                raise NotFoundError(
                    "the database holds no installation", hint="run 'agentfactory init' first"
                )
            held = _verified(stored, pinned, found.installation)
            following = with_publisher(held.keyset, publisher, self._clock.now())
            if following is held.keyset:
                return following.version
            signed = await _signed(following, root, held.relayed.handovers)
            await self._store.add_keyset(tx, signed)
            await self._store.add_key(
                tx,
                SigningKey(
                    key_id=publisher.key_id, purpose=KeyPurpose.PUBLISHER, spki_der=publisher.spki_der
                ),
            )
            await self._record(
                tx, "keyset.published", str(following.version), {"publisher_key_id": publisher.key_id}
            )
        files.write_public_file(paths.keyset, signed.envelope)
        return following.version

    async def replace_root(self, paths: InstallationPaths, root: PrivateKey) -> int:
        """Sign the next keyset with a root key that the one before does not vouch for, and pin it here.

        For a root key that is lost or in the wrong hands. Repeat: goes on where it was interrupted.

        Raises:
            NotFoundError: There is no installation here.
            VerificationError: The newest keyset is by neither the pinned root key nor the new one.
            ConflictError: Somebody else made a keyset meanwhile.
        """
        pinned = files.read_root_key(paths)
        async with self._database.transaction() as tx:
            stored = await self._store.newest_keyset(tx)
            found = await self._store.found(tx)
            if stored is None or found is None:
                raise NotFoundError(
                    "the database holds no installation", hint="run 'agentfactory init' first"
                )
            held = _verified(stored, pinned, found.installation, root.public)
            if held.keyset.root_key_id != root.key_id:
                following = replace(
                    held.keyset,
                    version=stored.version + 1,
                    issued_at=self._clock.now(),
                    root_key_id=root.key_id,
                )
                stored = await _signed(following, root, ())
                await self._store.add_keyset(tx, stored)
                facts = {"root_key_id": str(root.key_id), "instead_of": str(held.keyset.root_key_id)}
                await self._record(tx, "root.replaced", str(stored.version), facts)
        files.write_public_file(paths.keyset, stored.envelope)
        files.write_public_file(paths.root_public_key, root.public.to_pem())
        # The node that lives here follows: its keyset is by a root that counts no more.
        files.write_trust(paths, found.installation, root.public, pinned_pem(paths))
        paths.node.keyset.unlink(missing_ok=True)
        return stored.version

    async def record_new_authority(self, fingerprint: str, old_until: datetime) -> None:
        """Record that another authority issues certificates, and until when what the old one issued counts.

        Raises:
            NotFoundError: There is no installation in this database.
        """
        async with self._database.transaction() as tx:
            found = await self._store.found(tx)
            if found is None:
                raise NotFoundError("the database holds no installation", hint="name the right database")
            facts = {"certificate_sha256": fingerprint, "old_until": old_until.isoformat()}
            await self._record(tx, "authority.rotated", found.installation, facts)

    async def _bootstrap_secret(self, tx: Transaction, life: timedelta | None) -> str | None:
        if life is None:
            return None
        raw = self._random.token_bytes(BOOTSTRAP_SECRET_BYTES)
        secret = BOOTSTRAP_PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
        await self._store.add_bootstrap_secret(
            tx,
            tenant_id=DEFAULT_TENANT,
            secret_hash=hashlib.sha256(secret.encode()).hexdigest(),
            expires_at=self._clock.now() + life,
        )
        return secret

    async def _refuse_foreign(self, paths: InstallationPaths, installation: InstallationId) -> None:
        async with self._database.transaction() as tx:
            found = await self._store.found(tx)
            stored = await self._store.newest_keyset(tx)
        if found is not None and found.installation != installation:
            raise ConflictError(
                f"the database holds installation {found.installation}, not {installation}",
                hint="name the right installation, or another database",
            )
        if stored is not None and not paths.root_key.exists():
            raise ConflictError(
                f"the database holds keysets, but {paths.root_key} is not there",
                hint="use the data folder that this installation was made with",
            )

    async def _first_keyset(
        self,
        tx: Transaction,
        installation: InstallationId,
        keys: files.InstallationKeys,
        pinned: PublicKey,
    ) -> StoredKeyset:
        stored = await self._store.newest_keyset(tx)
        if stored is not None:
            # Not whether it lists the order key of this folder: that may have been rotated long ago.
            held = _verified(stored, pinned, installation)
            following = with_log_key(held.keyset, keys.log.public, self._clock.now())
            if following is held.keyset:
                return stored
            made = await _signed(following, keys.root, held.relayed.handovers)
            await self._store.add_keyset(tx, made)
            return made
        if pinned.key_id != keys.root.key_id:
            raise ConflictError(
                f"root.pub is root key {pinned.key_id}, root.key is {keys.root.key_id}",
                hint=f"remove {pinned.key_id} or put its private key back: the database holds no keyset yet",
            )
        first = first_keyset(
            installation=installation,
            root=pinned,
            order=keys.order.public,
            policy=keys.policy.public,
            log=keys.log.public,
            now=self._clock.now(),
        )
        made = await _signed(first, keys.root, ())
        await self._store.add_keyset(tx, made)
        return made

    async def _record(self, tx: Transaction, action: str, subject: str, details: dict[str, str]) -> None:
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=DEFAULT_TENANT,
            actor=SYSTEM_ACTOR,
            action=action,
            subject=subject,
            details=details,
        )
        await self._audit.append(tx, [entry])


def _verified(
    stored: StoredKeyset, pinned: PublicKey, installation: InstallationId, *others: PublicKey
) -> RootedKeyset:
    return verify_relayed(
        stored.envelope,
        root_keys={key.key_id: key for key in (pinned, *others)},
        minimum_version=stored.version,
        installation=installation,
    )


async def _signed(keyset: Keyset, root: PrivateKey, handovers: tuple[bytes, ...]) -> StoredKeyset:
    if root.key_id != keyset.root_key_id:
        raise WrongStateError(
            f"root key {keyset.root_key_id} is in force, the one in the data folder is {root.key_id}",
            hint="put the root key in force there, or sign elsewhere: agentfactory keys keyset sign",
        )
    envelope = await sign_keyset(keyset, [FileSigner(key=root)])
    relayed = RelayedKeyset(envelope=envelope, handovers=handovers)
    return StoredKeyset(version=keyset.version, envelope=encode_relayed(relayed))
