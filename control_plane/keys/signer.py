"""Which key signs orders now, and signing with it. Implements `Signer`; makes no key and no keyset.

A key signs only while the keyset lists it as valid, and only after every live session of this replica has
that keyset in force: no node meets an order by a key that it does not know yet. Orders of other replicas are
signed there, by the same rule.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Final, NoReturn, Protocol

from control_plane.keys.domain import CustodyKey, best_key
from control_plane.keys.ports import Acknowledgements, KeyCustody, KeyObserver
from shared.clock import Clock
from shared.errors import AgentFactoryError, KeyUnavailableError
from shared.keyset import KeyPurpose, Keyset, KeysetEntry
from shared.logs import get_logger
from shared.signatures import Signature

logger = get_logger(__name__)

REFRESH: Final = timedelta(seconds=1)
"""How soon a key is taken up that every session knows, and one dropped whose time is over."""
CHECK_EVERY: Final = 10
"""Refreshes after which the custodian is asked how it is: before an order needs it and a login ends."""


class CurrentKeyset(Protocol):
    """The newest keyset, verified."""

    async def current(self) -> Keyset:
        """Return it.

        Raises:
            AgentFactoryError: It cannot be read now, or does not verify.
        """


class OrderSigner:
    """Signs orders with the newest key that may."""

    def __init__(
        self,
        *,
        custody: KeyCustody,
        keysets: CurrentKeyset,
        observer: KeyObserver,
        clock: Clock,
    ) -> None:
        self.custody = custody
        self.observer = observer
        self._keysets = keysets
        self._clock = clock
        self._sessions: Acknowledgements | None = None
        self._key: CustodyKey | None = None
        self._entry: KeysetEntry | None = None
        self._known: Sequence[CustodyKey] = ()
        self._known_at_version = 0
        self._listed_since: dict[str, int] = {}
        self._problem = "no key has been chosen yet"
        self._heard = asyncio.Event()

    @property
    def key(self) -> CustodyKey | None:
        """What signs now; None: nothing may."""
        return self._key

    def listen_to(self, sessions: Acknowledgements) -> None:
        """Ask these sessions from now on; before, there are none."""
        self._sessions = sessions

    def acknowledged(self) -> int | None:
        """See `Acknowledgements`: of the sessions that are asked."""
        return None if self._sessions is None else self._sessions.acknowledged()

    async def sign(self, data: bytes) -> Signature:
        """Sign with the key that was chosen last, if it still may.

        Raises:
            KeyUnavailableError: No key may sign now, or the custodian does not.
        """
        if self._key is None or self._entry is None:
            raise KeyUnavailableError(f"nothing may sign orders: {self._problem}")
        if not self._entry.is_valid(self._clock.now()):
            raise KeyUnavailableError(f"the time of order key {self._key.key_id} is over")
        return await self.custody.sign(self._key, data)

    def heard_keysets(self, _: Sequence[str] = ()) -> None:
        """There is a newer keyset (subscriber of NOTIFY): choose now."""
        self._heard.set()

    async def run(self) -> NoReturn:
        """Choose again and again. Never returns."""
        turn = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH.total_seconds()):
                    await self._heard.wait()
            self._heard.clear()
            await self.refresh()
            turn += 1
            if turn % CHECK_EVERY == 0:
                await self._check()

    async def refresh(self) -> None:
        """Choose the key; keeps the one that there is while keyset or custodian cannot be asked."""
        try:
            await self._choose(await self._keysets.current())
        except AgentFactoryError as error:
            if self._key is None:
                self._problem = str(error)
            logger.warning("the order key could not be chosen", error=str(error))

    async def _check(self) -> None:
        try:
            await self.custody.check()
        except AgentFactoryError as error:
            logger.warning("the custodian of keys does not serve", error=str(error))

    async def _choose(self, keyset: Keyset) -> None:
        now = self._clock.now()
        listed = keyset.keys_for(KeyPurpose.ORDER, now)
        self.observer.keyset_is(keyset.version)
        if self._key is not None and self._key.key_id not in listed:
            logger.warning("an order key counts no more", key_id=self._key.key_id)
            self._key, self._entry = None, None
            self._problem = f"keyset {keyset.version} ended or revoked the key that signed"
        if self._key is not None:
            self._entry = _entry_of(keyset, self._key)
        for key_id in listed:
            self._listed_since.setdefault(key_id, keyset.version)
        if self._known_at_version != keyset.version or self._key is None:
            self._known = await self.custody.keys(KeyPurpose.ORDER)
            self._known_at_version = keyset.version
        best = best_key(self._known, listed)
        if best is None:
            self._problem = f"custody holds no order key that keyset {keyset.version} lists"
        elif best != self._key and self._is_known_everywhere(best):
            self._take(best, _entry_of(keyset, best))

    def _is_known_everywhere(self, key: CustodyKey) -> bool:
        known = self.acknowledged()
        if known is None or known >= self._listed_since[key.key_id]:
            return True
        self._problem = f"not every session has the keyset that lists order key {key.key_id}"
        return False

    def _take(self, key: CustodyKey, entry: KeysetEntry) -> None:
        self._key, self._entry = key, entry
        self.observer.signs_with(key, entry.not_before)
        logger.info(
            "orders are signed with this key", key_id=key.key_id, custody=f"{key.name} v{key.version}"
        )


def _entry_of(keyset: Keyset, key: CustodyKey) -> KeysetEntry:
    return next(one for one in keyset.entries if one.purpose is KeyPurpose.ORDER and one.key_id == key.key_id)
