"""The keys that this replica holds, for a while: seals bodies of tenants that want it, opens what is sealed.

Which tenants want it is read each second: sealing asks memory alone. Unwrapped keys leave memory after a
bounded time, at the latest `RESULT_GRACE` after their custodian last confirmed them.
"""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, NoReturn

from control_plane.body_keys.domain import RESULT_GRACE, BodyKeyId, wrapping_name
from control_plane.body_keys.ports import BodyKeyStore, KeyWrapping
from control_plane.body_keys.sealing import (
    SALT_BYTES,
    BodyPlace,
    key_of,
    open_segments,
    open_whole,
    seal,
)
from shared.clock import Clock, Random
from shared.errors import AgentFactoryError, KeyUnavailableError, NotFoundError
from shared.ids import BodyId, TenantId
from shared.logs import get_logger

LOOK_EVERY: Final = timedelta(seconds=1)
"""Between two looks at which tenants encrypt, and which keys are destroyed."""
LOOK_DEADLINE: Final = timedelta(seconds=30)
"""Of such a look, with the keys that it fetches."""
TRY_AGAIN_AFTER: Final = timedelta(seconds=2)
"""A key that could not be had is not asked for again before: one tenant's must not silence the custodian."""
MAX_HELD: Final = 4096
"""Unwrapped keys in memory."""

logger = get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class _Held:
    tenant_id: TenantId
    key: bytes = field(repr=False)
    confirmed_at: float
    """Monotonic seconds."""


class BodyKeyring:
    """Implements `BodySealer` of executions. Used on one event loop only."""

    def __init__(
        self, *, store: BodyKeyStore, wrapping: KeyWrapping, clock: Clock, random: Random, life: timedelta
    ) -> None:
        self._store = store
        self._wrapping = wrapping
        self._clock = clock
        self._random = random
        self._life = life.total_seconds()
        self._longest = (life + RESULT_GRACE).total_seconds()
        self._active: dict[TenantId, BodyKeyId | None] = {}
        self._held: dict[BodyKeyId, _Held] = {}
        self._wanted: dict[BodyKeyId, TenantId] = {}
        self._refused: dict[BodyKeyId, tuple[float, KeyUnavailableError]] = {}
        self._loading: defaultdict[BodyKeyId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._to_look = asyncio.Event()

    @property
    def is_needed(self) -> bool:
        """Whether bodies of any tenant are encrypted."""
        return bool(self._active)

    async def seal(self, tenant_id: TenantId, body_id: BodyId, content: bytes) -> bytes | None:
        """See `BodySealer.seal`."""
        if tenant_id not in self._active:
            return None
        return await self._sealed(tenant_id, body_id, content, within=self._life)

    async def seal_result(self, tenant_id: TenantId, body_id: BodyId, content: bytes) -> bytes | None:
        """See `BodySealer.seal_result`."""
        if tenant_id not in self._active:
            return None
        return await self._sealed(tenant_id, body_id, content, within=self._longest)

    async def open_piece(self, place: BodyPlace, header: bytes, segments: bytes, *, first: int) -> bytes:
        """See `BodySealer.open_piece`."""
        key = await self._key(place.tenant_id, key_of(header), within=self._longest)
        return open_segments(header, segments, first=first, place=place, key=key)

    async def open(self, place: BodyPlace, sealed: bytes) -> bytes:
        """See `BodySealer.open`."""
        key = await self._key(place.tenant_id, key_of(sealed), within=self._longest)
        return open_whole(sealed, place=place, key=key)

    def open_at_once(self, place: BodyPlace, sealed: bytes) -> bytes | None:
        """See `BodySealer.open_at_once`."""
        key_id = key_of(sealed)
        held = self._of(place.tenant_id, key_id, within=self._longest)
        if held is None:
            if len(self._wanted) < MAX_HELD:
                self._wanted[key_id] = place.tenant_id
            self._to_look.set()
            return None
        return open_whole(sealed, place=place, key=held)

    async def require(self, tenant_id: TenantId, header: bytes) -> None:
        """See `BodySealer.require`."""
        await self._key(tenant_id, key_of(header), within=self._longest)

    def forget(self, tenant_id: TenantId) -> None:
        """Drop the keys of a tenant from memory."""
        self._held = {one: held for one, held in self._held.items() if held.tenant_id != tenant_id}

    async def read(self) -> None:
        """Read which tenants encrypt and which keys are destroyed; asks no custodian.

        Raises:
            DatabaseUnavailableError: As `look`.
        """
        self._active = dict(await self._store.active())
        for gone in await self._store.destroyed(list(self._held)) if self._held else ():
            self._held.pop(gone, None)

    async def look(self) -> None:
        """Read which tenants encrypt and which keys are destroyed; fetch anew what gets old or is wanted.

        Raises:
            DatabaseUnavailableError: Postgres does not answer; what was known goes on to hold.
        """
        await self.read()
        now = self._clock.monotonic()
        self._held = {
            one: held for one, held in self._held.items() if now - held.confirmed_at <= self._longest
        }
        self._refused = {one: refusal for one, refusal in self._refused.items() if refusal[0] > now}
        for one in [one for one, lock in self._loading.items() if not lock.locked()]:
            del self._loading[one]
        wanted, self._wanted = self._wanted, {}
        wanted |= {key_id: tenant for tenant, key_id in self._active.items() if key_id is not None}
        for key_id, tenant_id in wanted.items():
            held = self._held.get(key_id)
            if held is None or now - held.confirmed_at > self._life / 2:
                await self._fetch_ahead(tenant_id, key_id)

    async def run(self) -> NoReturn:
        """Look each second until cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_DEADLINE.total_seconds()):
                    await self.look()
            except (AgentFactoryError, TimeoutError) as error:
                logger.warning("keys of bodies were not looked at", error=str(error) or "too slow")
            self._to_look.clear()
            try:
                async with asyncio.timeout(LOOK_EVERY.total_seconds()):
                    await self._to_look.wait()
            except TimeoutError:
                continue

    async def _sealed(self, tenant_id: TenantId, body_id: BodyId, content: bytes, *, within: float) -> bytes:
        key_id = self._active[tenant_id]
        if key_id is None:
            raise KeyUnavailableError(
                f"bodies of tenant {tenant_id} are encrypted and its keys were erased",
                hint="make a new one: agentfactory tenant rotate-key",
            )
        try:
            key = await self._key(tenant_id, key_id, within=within)
        except NotFoundError as error:  # destroyed since the last look
            raise KeyUnavailableError(f"the keys of tenant {tenant_id} change now: {error}") from error
        place = BodyPlace(tenant_id=tenant_id, body_id=body_id, size_bytes=len(content))
        return seal(content, place=place, key_id=key_id, key=key, salt=self._random.token_bytes(SALT_BYTES))

    def _of(self, tenant_id: TenantId, key_id: BodyKeyId, *, within: float) -> bytes | None:
        held = self._held.get(key_id)
        if held is None or held.tenant_id != tenant_id:
            return None
        return held.key if self._clock.monotonic() - held.confirmed_at <= within else None

    async def _key(self, tenant_id: TenantId, key_id: BodyKeyId, *, within: float) -> bytes:
        """Return a key that was confirmed within its life, or within `within` seconds if it cannot be now."""
        held = self._of(tenant_id, key_id, within=self._life)
        if held is not None:
            return held
        try:
            return await self._load(tenant_id, key_id)
        except KeyUnavailableError:
            held = self._of(tenant_id, key_id, within=within)
            if held is None:
                raise
            return held

    async def _load(self, tenant_id: TenantId, key_id: BodyKeyId) -> bytes:
        asked_at = self._clock.monotonic()
        async with self._loading[key_id]:
            held = self._held.get(key_id)
            if held is not None and held.tenant_id == tenant_id and held.confirmed_at >= asked_at:
                return held.key
            refused = self._refused.get(key_id)
            if refused is not None and self._clock.monotonic() < refused[0]:
                raise KeyUnavailableError(str(refused[1]), hint=refused[1].hint, retry_after=TRY_AGAIN_AFTER)
            try:
                key = await self._unwrapped(tenant_id, key_id)
            except KeyUnavailableError as error:
                until = self._clock.monotonic() + TRY_AGAIN_AFTER.total_seconds()
                self._refused[key_id] = (until, error)
                raise
            if len(self._held) >= MAX_HELD:
                del self._held[min(self._held, key=lambda one: self._held[one].confirmed_at)]
            self._held[key_id] = _Held(tenant_id=tenant_id, key=key, confirmed_at=self._clock.monotonic())
            return key

    async def _unwrapped(self, tenant_id: TenantId, key_id: BodyKeyId) -> bytes:
        found = await self._store.find(key_id)
        if found is None or found.tenant_id != tenant_id:
            raise NotFoundError(f"tenant {tenant_id} has no body key {key_id}")
        if found.destroyed_at is not None:
            self._held.pop(key_id, None)
            raise NotFoundError(
                "the body was erased: the keys of its tenant were destroyed at"
                f" {found.destroyed_at.isoformat(timespec='seconds')}"
            )
        name = wrapping_name(tenant_id, found.generation)
        return await self._wrapping.unwrap(name, key_id, found.wrapped)

    async def _fetch_ahead(self, tenant_id: TenantId, key_id: BodyKeyId) -> None:
        try:
            await self._load(tenant_id, key_id)
        except (KeyUnavailableError, NotFoundError) as error:
            logger.warning("a key of bodies cannot be had", tenant_id=tenant_id, error=str(error))
