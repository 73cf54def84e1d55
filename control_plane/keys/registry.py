"""The installation's keyset as the control plane uses it: verified once per version, remembered for a second.

Relays and reads keysets; makes none. The root public key comes from the data folder, never from the database;
a later one only by a handover that it signed, and then the earlier one counts no more.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from control_plane.database.ports import Database
from control_plane.installation.ports import StoredKeyset
from control_plane.keys.ports import KeyStore
from shared.clock import Clock
from shared.errors import UnavailableError
from shared.ids import InstallationId, KeyId
from shared.keyset import KeyPurpose, Keyset
from shared.roots import verify_relayed
from shared.signatures import PublicKey

KEYSET_LIFE: Final = timedelta(seconds=1)
"""How long a new publisher or a revocation may go unnoticed here."""


class KeysetRegistry:
    """The newest keyset, read again when it is older than a second."""

    def __init__(
        self,
        *,
        database: Database,
        store: KeyStore,
        root: PublicKey,
        installation: InstallationId,
        clock: Clock,
    ) -> None:
        self._database = database
        self._store = store
        self._root_keys: Mapping[KeyId, PublicKey] = {root.key_id: root}
        self._installation = installation
        self._clock = clock
        self._keyset: Keyset | None = None
        self._envelope = b""
        self._freshness = b""
        self._until = 0.0
        self._reading = asyncio.Lock()

    def changed(self, _: Sequence[str] = ()) -> None:
        """Forget how old the answer is: there is a newer keyset or statement (subscriber of NOTIFY)."""
        self._until = 0.0

    async def newest(self) -> tuple[int, bytes]:
        """Return version and envelope.

        Raises:
            DatabaseUnavailableError: It cannot be read now.
            UnavailableError: The database holds none.
            VerificationError: What it holds is not signed by the root key in force, or older than what was
                seen.
        """
        keyset = await self.current()
        return keyset.version, self._envelope

    async def current(self) -> Keyset:
        """Return the newest keyset, verified.

        Raises:
            DatabaseUnavailableError, UnavailableError, VerificationError: As `newest`.
        """
        # One reader at a time: of two, the one that read first must not come in last with the older answer.
        async with self._reading:
            if self._keyset is None or self._clock.monotonic() >= self._until:
                self._keyset = await self._read()
            return self._keyset

    async def _read(self) -> Keyset:
        # Before it is asked: what changes meanwhile is asked for again.
        self._until = self._clock.monotonic() + KEYSET_LIFE.total_seconds()
        try:
            async with self._database.transaction() as tx:
                stored = await self._store.newest_keyset(tx)
                statement = await self._store.newest_statement(tx)
            keyset = self._verified(stored)
        except BaseException:
            self._until = 0.0
            raise
        self._freshness = b"" if statement is None else statement.envelope
        return keyset

    def _verified(self, stored: StoredKeyset | None) -> Keyset:
        if stored is None:
            raise UnavailableError("the database holds no keyset", hint="run 'agentfactory init'")
        if self._keyset is not None and stored.envelope == self._envelope:
            return self._keyset
        found = verify_relayed(
            stored.envelope,
            root_keys=self._root_keys,
            minimum_version=self._keyset.version if self._keyset is not None else 1,
            installation=self._installation,
        )
        self._envelope, self._root_keys = stored.envelope, found.root_keys
        return found.keyset

    async def freshness(self) -> bytes:
        """Return the newest statement of freshness; empty when there is none.

        Raises:
            DatabaseUnavailableError, UnavailableError, VerificationError: As `newest`.
        """
        await self.current()
        return self._freshness

    async def order_keys(self, at: datetime) -> dict[KeyId, PublicKey]:
        """Return the keys that may sign orders at this time.

        Raises:
            DatabaseUnavailableError, UnavailableError, VerificationError: As `newest`.
        """
        return (await self.current()).keys_for(KeyPurpose.ORDER, at)

    async def publishers(self, at: datetime) -> dict[KeyId, PublicKey]:
        """Return the keys that may sign templates at this time.

        Raises:
            DatabaseUnavailableError, UnavailableError, VerificationError: As `newest`.
        """
        return (await self.current()).keys_for(KeyPurpose.PUBLISHER, at)
