"""Of the calls that the way to the control plane takes at once, no tenant gets so many that none are left.

Whose a call is, the control plane says once for each token, and that is remembered for a while: what stands
in a token is nobody's word before it is verified, and this process verifies none.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Final

from shared.cache import Cache, CacheBounds
from shared.clock import Clock
from shared.errors import ResourceExhaustedError

STRANGERS: Final = 8
"""One call in so many may be nobody's, or one that asks whose a token is; more wait for their turn."""

STRANGERS_WAIT: Final = timedelta(seconds=5)

KNOWN_FOR: Final = timedelta(minutes=1)
MAX_KNOWN: Final = 4096
"""Tokens whose tenant is remembered."""

RETRY_AFTER: Final = timedelta(seconds=1)
"""A call ends when its own caller wants, so no rate says more."""

Metadata = Sequence[tuple[str, str]]


class CallShares:
    """Counts calls by tenant. Used on one event loop only; makes nobody wait whose tenant is known."""

    def __init__(self, most: int) -> None:
        for_strangers = max(1, most // STRANGERS)
        self._most = most
        self._most_of_tenants = most - for_strangers
        self._strangers = asyncio.Semaphore(for_strangers)
        self._of_tenant: Counter[str] = Counter()  # of those with a call under way

    @contextmanager
    def of(self, tenant: str) -> Iterator[None]:
        """Count one call for the length of the block.

        A tenant alone gets half, two get a third each, and so on: there is room for one more always.

        Raises:
            ResourceExhaustedError: The tenant has its share under way, or all together have all.
        """
        with_it = len(self._of_tenant.keys() | {tenant})
        share = max(1, self._most // (with_it + 1))
        if self._of_tenant[tenant] >= share:
            self._clean(tenant)
            raise ResourceExhaustedError(
                f"{share} calls of tenant {tenant or 'none'} are under way here, its share",
                hint="wait for their ends with one stream, or ask another gateway",
                retry_after=RETRY_AFTER,
            )
        self._require_room(tenant)
        self._of_tenant[tenant] += 1
        try:
            yield
        finally:
            self._of_tenant[tenant] -= 1
            self._clean(tenant)

    @asynccontextmanager
    async def of_stranger(self) -> AsyncIterator[None]:
        """Count one call of nobody, or one that asks whose a token is, for the length of the block.

        Raises:
            ResourceExhaustedError: So many ask that its turn did not come.
        """
        try:
            async with asyncio.timeout(STRANGERS_WAIT.total_seconds()):
                await self._strangers.acquire()
        except TimeoutError:
            raise ResourceExhaustedError(
                "too many come without a token, or with one that is not known here",
                hint="try again",
                retry_after=RETRY_AFTER,
            ) from None
        try:
            yield
        finally:
            self._strangers.release()

    def _require_room(self, tenant: str) -> None:
        if self._of_tenant.total() >= self._most_of_tenants:
            self._clean(tenant)
            raise ResourceExhaustedError(
                f"{self._of_tenant.total()} calls are under way here",
                hint="try again, or ask another gateway",
                retry_after=RETRY_AFTER,
            )

    def _clean(self, tenant: str) -> None:
        if not self._of_tenant[tenant]:
            del self._of_tenant[tenant]


class KnownTenants:
    """Which tenant a token's calls count in, from memory or asked for."""

    def __init__(
        self, *, shares: CallShares, ask: Callable[[Metadata], Awaitable[str]], clock: Clock
    ) -> None:
        self._shares = shares
        self._ask = ask
        self._known: Cache[bytes, str] = Cache(
            bounds=CacheBounds(entries=MAX_KNOWN, life=KNOWN_FOR), clock=clock
        )

    async def of(self, metadata: Metadata) -> str:
        """Return the tenant; empty: the identity is bound in several and named none.

        Raises:
            AgentFactoryError: As the control plane said: the token does not verify.
            ResourceExhaustedError: Too many ask at this moment.
        """
        # A digest, so that no token lies in memory for longer than its call.
        key = hashlib.sha256("\n".join(f"{name}\0{value}" for name, value in metadata).encode()).digest()
        return await self._known.get_or_load(key, lambda: self._asked(metadata))

    async def _asked(self, metadata: Metadata) -> str:
        async with self._shares.of_stranger():
            return await self._ask(metadata)
