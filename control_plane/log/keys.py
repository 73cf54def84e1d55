"""The log key from custody. Implements `LogKeys`."""

from control_plane.keys.domain import CustodyKey, best_key
from control_plane.keys.ports import KeyCustody
from control_plane.keys.signer import CurrentKeyset
from shared.clock import Clock
from shared.errors import KeyUnavailableError
from shared.keyset import KeyPurpose
from shared.signatures import PublicKey, Signature


class CustodyLogKeys:
    """The newest key of purpose `log` that is in custody and in the keyset."""

    def __init__(self, *, custody: KeyCustody, keysets: CurrentKeyset, clock: Clock) -> None:
        self._custody = custody
        self._keysets = keysets
        self._clock = clock
        self._key: CustodyKey | None = None

    async def public(self) -> PublicKey | None:
        """See `LogKeys.public`."""
        listed = (await self._keysets.current()).keys_for(KeyPurpose.LOG, self._clock.now())
        if self._key is None or self._key.key_id not in listed:
            self._key = best_key(await self._custody.keys(KeyPurpose.LOG), listed) if listed else None
        return None if self._key is None else self._key.public

    async def sign(self, data: bytes) -> Signature:
        """See `Signer.sign`."""
        if self._key is None:
            raise KeyUnavailableError("the keyset lists no log key that is in custody")
        return await self._custody.sign(self._key, data)
