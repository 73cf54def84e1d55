"""The newest root-signed keyset this node has seen, kept across restarts. Versions never go back (rule 12).

Neither do roots: once a keyset of root N+1 is kept, root N signs nothing here. Says which key may sign what;
signs nothing.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from data_plane.files import replace_file
from shared.dsse import MAX_ENVELOPE_BYTES
from shared.errors import RollbackError, UnavailableError, UnknownKeyError
from shared.ids import InstallationId, KeyId
from shared.keyset import KeyPurpose, Keyset
from shared.logs import get_logger
from shared.roots import RootedKeyset, encode_relayed, verify_relayed
from shared.signatures import PublicKey

logger = get_logger(__name__)


class NodeKeyset:
    """Verifies keysets under the pinned root, or one that followed it; answers which key may sign what."""

    def __init__(
        self, *, root_keys: Mapping[KeyId, PublicKey], installation: InstallationId, path: Path
    ) -> None:
        self._root_keys: Mapping[KeyId, PublicKey] = dict(root_keys)
        self._handovers: tuple[bytes, ...] = ()
        self._installation = installation
        self._path = path
        self._keyset: Keyset | None = None
        self._envelope = b""

    def load(self) -> None:
        """Take up the keyset of the last run, if there is one.

        Raises:
            VerificationError: The file was altered, or the pinned root key has changed. The node does not
                start: without the version it could be fed an older keyset.
        """
        try:
            with self._path.open("rb") as file:
                envelope = file.read(MAX_ENVELOPE_BYTES + 1)
        except FileNotFoundError:
            return
        found = self._verify(envelope, minimum_version=1)
        self._take(found, envelope)

    def offer(self, envelope: bytes) -> bool:
        """Verify a keyset and, when it is newer, keep it for good. Returns whether it was newer.

        Raises:
            VerificationError: As `verify_relayed`: not signed by the root in force or by one to which it has
                handed over, altered, of another installation.
            RollbackError: It is older than the newest one seen, or another of the same version, or of an
                earlier epoch.
            UnavailableError: It cannot be kept (the disk is full): the older one stays in force, as after a
                restart.
        """
        if envelope == self._envelope:
            return False
        found = self._verify(envelope, minimum_version=self.version)
        version = found.keyset.version
        if self._keyset is not None and version == self._keyset.version:
            if found.keyset == self._keyset:
                return False
            raise RollbackError(f"a second, different keyset of version {version} was offered")
        if found.keyset.epoch < self.epoch:
            raise RollbackError(f"keyset {version} is of epoch {found.keyset.epoch}, seen was {self.epoch}")
        # With the handovers that this node has followed: without them it could not read it again.
        data = encode_relayed(found.relayed)
        try:
            replace_file(self._path, data)
        except OSError as error:
            raise UnavailableError(f"keyset {version} cannot be kept: {error.strerror}") from error
        self._take(found, data)
        logger.info("a newer keyset is in force", keyset_version=version)
        if found.followed:
            logger.warning("a new root key is in force", root_key_id=found.keyset.root_key_id)
        return True

    @property
    def installation(self) -> InstallationId:
        """Whose keysets these are."""
        return self._installation

    @property
    def version(self) -> int:
        """The newest version seen; 0 before the first."""
        return 0 if self._keyset is None else self._keyset.version

    @property
    def epoch(self) -> int:
        """The installation epoch of the newest keyset; 0 before the first."""
        return 0 if self._keyset is None else self._keyset.epoch

    def keys_for(self, purpose: KeyPurpose, at: datetime) -> Mapping[KeyId, PublicKey]:
        """Return the keys whose signatures count now; none before the first keyset."""
        return {} if self._keyset is None else self._keyset.keys_for(purpose, at)

    def lists(self, purpose: KeyPurpose, at: datetime) -> bool:
        """Return whether a key of this purpose has begun, valid still or not."""
        entries = () if self._keyset is None else self._keyset.entries
        return any(entry.purpose is purpose and entry.not_before <= at for entry in entries)

    def revoked(self, purpose: KeyPurpose, at: datetime) -> frozenset[KeyId]:
        """Return the keys of this purpose that are revoked."""
        entries = () if self._keyset is None else self._keyset.entries
        return frozenset(
            entry.key_id for entry in entries if entry.purpose is purpose and entry.is_revoked(at)
        )

    def require(self, purpose: KeyPurpose, key_id: KeyId, at: datetime) -> PublicKey:
        """Return one key, or say why its signatures do not count.

        Raises:
            UnknownKeyError: There is no keyset, or the key is not in it for this purpose and time.
            KeyRevokedError: The key is revoked.
        """
        if self._keyset is None:
            raise UnknownKeyError(f"key {key_id} cannot be looked up: this node has no keyset yet")
        return self._keyset.require(purpose, key_id, at)

    def _take(self, found: RootedKeyset, envelope: bytes) -> None:
        self._keyset, self._root_keys = found.keyset, found.root_keys
        self._handovers, self._envelope = found.relayed.handovers, envelope

    def _verify(self, envelope: bytes, *, minimum_version: int) -> RootedKeyset:
        return verify_relayed(
            envelope,
            root_keys=self._root_keys,
            minimum_version=minimum_version,
            installation=self._installation,
            held=self._handovers,
        )
