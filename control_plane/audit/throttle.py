"""Refusals on record, within bounds: whoever may call for nothing must not fill the database.

Each peer has a bucket of entries; all that nobody knows share one. What does not fit is counted, and the
counts are recorded as one entry per peer and minute: the log says how much it left out.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NoReturn

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditStore
from shared.clock import Clock, Random
from shared.errors import AgentFactoryError
from shared.ids import AUDIT_ENTRY, TenantId, new_id
from shared.logs import get_logger

BURST_ENTRIES: Final = 60
"""Refusals of one peer that are recorded one by one without a pause."""

ENTRIES_PER_SECOND: Final = 1.0
"""Of one peer in the long run."""

FLUSH_EVERY: Final = timedelta(minutes=1)

MAX_BUCKETS: Final = 1024
"""Known peers with a bucket of their own; the one that was refused longest ago is forgotten."""

ANONYMOUS: Final = "anonymous"

logger = get_logger(__name__)


@dataclass(slots=True)
class _Bucket:
    tenant_id: TenantId
    entries: float
    at: float
    left_out: int = 0


class RefusalLog:
    """Records refused calls; every entry goes through the bucket of its peer."""

    def __init__(self, *, audit: AuditStore, clock: Clock, random: Random) -> None:
        self._audit = audit
        self._clock = clock
        self._random = random
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    async def record(self, audit: NewAuditEntry, *, peer: str = ANONYMOUS) -> None:
        """Record a refusal, or count it. `peer` is a known identity; all others share one bucket.

        Raises:
            DatabaseUnavailableError: It could not be recorded.
        """
        bucket = self._bucket(peer, audit.tenant_id)
        if bucket.entries < 1:
            bucket.left_out += 1
            return
        bucket.entries -= 1
        await self._audit.record([audit])

    async def flush(self) -> None:
        """Record what was counted since the last time.

        Raises:
            DatabaseUnavailableError: It could not be recorded; the counts are kept.
        """
        counted = {peer: bucket.left_out for peer, bucket in self._buckets.items() if bucket.left_out}
        if not counted:
            return
        logger.warning(
            "refusals were not recorded one by one", peers=len(counted), count=sum(counted.values())
        )
        await self._audit.record([self._summary(peer, count) for peer, count in counted.items()])
        for peer, count in counted.items():
            self._buckets[peer].left_out -= count

    async def run(self) -> NoReturn:
        """Flush once a minute until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_EVERY.total_seconds())
            try:
                await self.flush()
            except AgentFactoryError as error:
                logger.warning("refusals were not recorded, it is tried again", error=str(error))

    def _summary(self, peer: str, count: int) -> NewAuditEntry:
        return NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=self._buckets[peer].tenant_id,
            actor=peer,
            action="access.denials_left_out",
            subject=peer,
            result="RESOURCE_EXHAUSTED",
            details={"count": count},
        )

    def _bucket(self, peer: str, tenant_id: TenantId) -> _Bucket:
        now = self._clock.monotonic()
        bucket = self._buckets.get(peer)
        if bucket is None:
            peer = self._make_room(peer)
            bucket = self._buckets.setdefault(peer, _Bucket(tenant_id, BURST_ENTRIES, now))
        self._buckets.move_to_end(peer)
        bucket.entries = min(BURST_ENTRIES, bucket.entries + (now - bucket.at) * ENTRIES_PER_SECOND)
        bucket.at = now
        return bucket

    def _make_room(self, peer: str) -> str:
        """Forget a bucket that has nothing to say; without one the newcomer shares the common one."""
        if len(self._buckets) < MAX_BUCKETS:
            return peer
        quiet = (name for name, one in self._buckets.items() if not one.left_out and name != ANONYMOUS)
        oldest = next(quiet, None)
        if oldest is None:
            return ANONYMOUS
        del self._buckets[oldest]
        return peer
