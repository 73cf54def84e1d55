"""Makes an installation, completes a half-made one, and lets publishers in. Serves nothing.

Files come first and the database second: a crash between them leaves keys without rows, and a repeat adds the
rows. Called by the command line through `control_plane/setup.py`, never by the running control plane.
"""

import base64
import hashlib
from datetime import timedelta

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
from shared.errors import ConflictError, NotFoundError
from shared.ids import AUDIT_ENTRY, InstallationId, new_id
from shared.key_files import read_private_key
from shared.keyset import KeyPurpose, Keyset, sign_keyset, verify_keyset
from shared.local_tokens import identity_of
from shared.paths import InstallationPaths
from shared.signatures import FileSigner, PublicKey


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
        files.write_trust(paths, installation, keys.root.public, pinned_pem(paths))
        async with self._database.transaction() as tx:
            created = await self._store.found(tx) is None
            await self._store.create(tx, installation, DEFAULT_TENANT)
            for identity in (admin, identity_of(request.admin)):
                await self._store.bind_role(tx, tenant_id=DEFAULT_TENANT, identity=identity, role="admin")
            for purpose, key in (
                ("root", keys.root),
                ("order", keys.order),
                ("policy", keys.policy),
                ("log", keys.log),
            ):
                public = key.public
                await self._store.add_key(
                    tx, SigningKey(key_id=public.key_id, purpose=purpose, spki_der=public.spki_der)
                )
            if request.service_password is not None:
                await self._set_service_password(tx, request.service_password)
            keyset = await self._first_keyset(tx, installation, keys)
            secret = await self._bootstrap_secret(tx, request.bootstrap_life) if created else None
            if created:
                await self._record(tx, "installation.initialized", installation, {"admin": admin})
        files.write_public_file(paths.keyset, keyset.envelope)
        files.write_description(
            paths,
            files.InstallationDescription(
                installation=installation,
                root_key_id=keys.root.key_id,
                order_key_id=keys.order.key_id,
                server_names=request.server_names,
            ),
        )
        return Initialized(
            installation=installation,
            paths=paths,
            root_key_id=keys.root.key_id,
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
            WrongStateError: The key was trusted once, and has ended or was revoked.
        """
        root = read_private_key(paths.root_key)
        async with self._database.transaction() as tx:
            stored = await self._store.newest_keyset(tx)
            found = await self._store.found(tx)
            if stored is None or found is None:
                raise NotFoundError(
                    "the database holds no installation", hint="run 'agentfactory init' first"
                )
            keyset = verify_keyset(
                stored.envelope,
                root_keys={root.key_id: root.public},
                minimum_version=stored.version,
                installation=found.installation,
            )
            following = with_publisher(keyset, publisher, self._clock.now())
            if following is keyset:
                return keyset.version
            signed = StoredKeyset(
                version=following.version, envelope=await sign_keyset(following, [FileSigner(key=root)])
            )
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
        self, tx: Transaction, installation: InstallationId, keys: files.InstallationKeys
    ) -> StoredKeyset:
        stored = await self._store.newest_keyset(tx)
        if stored is not None:
            # Not whether it lists the order key of this folder: that may have been rotated long ago.
            keyset = verify_keyset(
                stored.envelope,
                root_keys={keys.root.key_id: keys.root.public},
                minimum_version=stored.version,
                installation=installation,
            )
            following = with_log_key(keyset, keys.log.public, self._clock.now())
            return stored if following is keyset else await self._sign_keyset(tx, following, keys)
        first = first_keyset(
            installation=installation,
            root=keys.root.public,
            order=keys.order.public,
            policy=keys.policy.public,
            log=keys.log.public,
            now=self._clock.now(),
        )
        return await self._sign_keyset(tx, first, keys)

    async def _sign_keyset(
        self, tx: Transaction, keyset: Keyset, keys: files.InstallationKeys
    ) -> StoredKeyset:
        made = StoredKeyset(
            version=keyset.version, envelope=await sign_keyset(keyset, [FileSigner(key=keys.root)])
        )
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
