"""The log key from custody. Implements `LogKeys`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from control_plane.keys.domain import CustodyKey
from control_plane.keys.ports import Acknowledgements, KeyCustody
from control_plane.keys.signer import CurrentKeyset
from shared.clock import Clock
from shared.errors import KeyUnavailableError
from shared.ids import KeyId
from shared.keyset import KeyPurpose
from shared.signatures import PublicKey, Signature

SETTLED: Final = timedelta(seconds=20)
"""Age of a keyset after which no replica has a session without it: the bound of relaying it (5 s), and of the
grace (10 s) after which a session that does not take it up is ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    version: int
    settled_at: float
    """By the monotonic clock."""


class CustodyLogKeys:
    """The newest key of purpose `log` that is in custody and a keyset that every live session has (rule 12).

    Nodes of other replicas see these checkpoints too, and their sessions are not asked: so the keyset has to
    be of some age as well. The key before goes on until then, if it still counts; else nothing is signed.
    """

    def __init__(
        self, *, custody: KeyCustody, keysets: CurrentKeyset, sessions: Acknowledgements, clock: Clock
    ) -> None:
        self._custody = custody
        self._keysets = keysets
        self._sessions = sessions
        self._clock = clock
        self._key: CustodyKey | None = None
        self._listed: dict[KeyId, _Listed] = {}
        self._held: Sequence[CustodyKey] = ()
        self._held_at_version = 0

    async def public(self) -> PublicKey | None:
        """See `LogKeys.public`."""
        keyset = await self._keysets.current()
        listed = keyset.keys_for(KeyPurpose.LOG, self._clock.now())
        self._note(listed, keyset.version)
        if listed and (self._held_at_version != keyset.version or self._key is None):
            self._held = await self._custody.keys(KeyPurpose.LOG)
        self._held_at_version = keyset.version
        self._key = self._choose(listed)
        return None if self._key is None else self._key.public

    async def sign(self, data: bytes) -> Signature:
        """See `Signer.sign`."""
        if self._key is None:
            raise KeyUnavailableError(
                "the keyset lists no log key that is in custody and known to every session"
            )
        return await self._custody.sign(self._key, data)

    def _note(self, listed: Mapping[KeyId, PublicKey], version: int) -> None:
        # What was listed when this replica began has been so for long, or is the first keyset of all.
        is_first = self._held_at_version == 0
        at = self._clock.monotonic() + (0 if is_first else SETTLED.total_seconds())
        for key_id in listed:
            self._listed.setdefault(key_id, _Listed(version=version, settled_at=at))

    def _choose(self, listed: Mapping[KeyId, PublicKey]) -> CustodyKey | None:
        """Return the newest that may; a key that signs goes on while it counts and none after it may."""
        for key in reversed(self._held):
            if key.key_id in listed and (key == self._key or self._is_known_everywhere(key.key_id)):
                return key
        return None

    def _is_known_everywhere(self, key_id: KeyId) -> bool:
        since, known = self._listed[key_id], self._sessions.acknowledged()
        return (known is None or known >= since.version) and self._clock.monotonic() >= since.settled_at
