"""Use cases of people who have to prove what happened: list, watch, fetch a receipt."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

from control_plane.audit.domain import AuditEntry, AuditFilter, EntryOrder, Exported
from control_plane.audit.ports import AuditCursor, AuditStore, Decisions, ReceiptEvidence
from control_plane.paging import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Page
from control_plane.policy.bundles import RecordedDecision
from shared.errors import InvalidInputError, NotFoundError, ResourceExhaustedError
from shared.ids import AUDIT_ENTRY, EXECUTION, RECEIPT, DecisionId, TenantId, parse_id

WATCH_BATCH: Final = 200
"""Entries that a watcher reads at once."""
POLL_SECONDS: Final = 1.0
MAX_WATCHERS: Final = 256
"""Of one replica; each asks Postgres once a second at least."""

EXPORT_BATCH: Final = 200
"""Leaves that an export reads at once."""
MAX_EXPORTS: Final = 16
"""Of one replica."""

_ALL: Final = AuditFilter()

Hint = Callable[[Sequence[str]], None]
Subscribe = Callable[[Hint], AbstractContextManager[None]]
"""Calls the given function whenever entries may have been recorded, for the length of the block."""


class AuditService:
    """Reads what was recorded. Recording is what the use cases do that change something."""

    def __init__(
        self,
        store: AuditStore,
        *,
        decisions: Decisions,
        subscribe: Subscribe,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._store = store
        self._decisions = decisions
        self._subscribe = subscribe
        self._poll_seconds = poll_seconds
        self._watchers = 0
        self._exports = 0

    async def list(
        self,
        tenant_id: TenantId,
        wanted: AuditFilter,
        *,
        order: EntryOrder = EntryOrder.NEWEST_FIRST,
        page_size: int,
        page_token: str,
    ) -> Page[AuditEntry]:
        """Return a page of the entries that the filter takes; a size of zero means 50.

        Raises:
            InvalidInputError: The page token is not one of ours, or the page is larger than 500.
        """
        if page_size > MAX_PAGE_SIZE:
            raise InvalidInputError(f"page_size is {page_size}, at most {MAX_PAGE_SIZE} are possible")
        return await self._store.list(
            tenant_id,
            wanted,
            order=order,
            page_size=page_size or DEFAULT_PAGE_SIZE,
            page_token=page_token,
        )

    async def watch(
        self, tenant_id: TenantId, *, after: str, wanted: AuditFilter = _ALL
    ) -> AsyncGenerator[AuditEntry]:
        """Yield what the filter takes as it is committed, each exactly once, from behind `after` or now on.

        Raises:
            InvalidInputError: `after` is no id of an audit entry.
            NotFoundError: There is no such entry.
            ResourceExhaustedError: Too many watch already.
        """
        if self._watchers >= MAX_WATCHERS:
            raise ResourceExhaustedError(f"{MAX_WATCHERS} callers of this replica watch already")
        self._watchers += 1
        hinted = asyncio.Event()
        try:
            with self._subscribe(lambda _: hinted.set()):
                cursor = await self._start(tenant_id, after)
                while True:
                    hinted.clear()
                    entries, cursor = await self._store.after(tenant_id, cursor, limit=WATCH_BATCH)
                    for entry in filter(wanted.takes, entries):
                        yield entry
                    if not entries:
                        await _within(hinted, self._poll_seconds)
        finally:
            self._watchers -= 1

    async def export(self, tenant_id: TenantId, *, after: int | None) -> AsyncGenerator[Exported]:
        """Yield what every leaf of the tenant behind place `after` is about, once, up to the log's end.

        Raises:
            ResourceExhaustedError: Too many export already.
        """
        if self._exports >= MAX_EXPORTS:
            raise ResourceExhaustedError(f"{MAX_EXPORTS} exports are running on this replica already")
        self._exports += 1
        try:
            place, reached = None, -1 if after is None else after
            while place != reached:
                place = reached
                found, reached = await self._store.exported(tenant_id, after=place, limit=EXPORT_BATCH)
                for one in found:
                    yield one
        finally:
            self._exports -= 1

    async def get_receipt(
        self, tenant_id: TenantId, *, receipt_id: str, execution_id: str
    ) -> ReceiptEvidence:
        """Return a receipt, or the one that decided an execution, with all that verifies it.

        Raises:
            InvalidInputError: Neither or both are named, or the id is not one.
            NotFoundError: There is no such receipt.
        """
        if bool(receipt_id) == bool(execution_id):
            raise InvalidInputError("name either receipt_id or execution_id")
        if receipt_id:
            wanted = parse_id(RECEIPT, receipt_id)
        else:
            wanted = await self._store.receipt_of(tenant_id, parse_id(EXECUTION, execution_id))
        evidence = await self._store.get_receipt(tenant_id, wanted)
        return replace(evidence, decision=await self._decision(tenant_id, evidence.decision_id))

    async def _decision(self, tenant_id: TenantId, decision_id: DecisionId) -> RecordedDecision | None:
        try:
            return await self._decisions.get(tenant_id, decision_id)
        except NotFoundError:
            return None

    async def _start(self, tenant_id: TenantId, after: str) -> AuditCursor:
        if not after:
            return await self._store.newest(tenant_id)
        return await self._store.cursor_after(tenant_id, parse_id(AUDIT_ENTRY, after))


async def _within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
