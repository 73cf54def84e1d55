"""The running node: its session, its orders, its leases, its certificate, and how they end together.

Owns the tasks. Builds nothing: `main.py` does.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, NoReturn

from data_plane.artifacts.cache import ArtifactCache
from data_plane.attempt import StopReason
from data_plane.enrollment import make_csr, renewal_due_at
from data_plane.identity import (
    Certificate,
    NodeIdentity,
    check_certificate,
    load_tls_key,
    write_certificate,
)
from data_plane.metrics import NodeMetrics
from data_plane.orders.admission import Admissions
from data_plane.orders.log_check import LogCheck
from data_plane.receipts.spool import Spool
from data_plane.runner import OrderRunner
from data_plane.sandbox.ports import Sandbox
from data_plane.session.leases import Leases
from data_plane.session.remote import ControlPlaneLink
from data_plane.session.service import SessionService
from shared.admin_http import Readiness
from shared.clock import Clock
from shared.logs import get_logger
from shared.paths import NodePaths
from shared.rpc.identity import node_spiffe_id

logger = get_logger(__name__)

LEASE_WATCH: Final = timedelta(milliseconds=200)
"""Longest sleep of the lease watch; the end of a known lease wakes it earlier."""

RENEWAL_RETRY: Final = timedelta(seconds=30)
RENEWAL_WAIT: Final = timedelta(milliseconds=500)
"""Between looks for a session to renew over."""

RENEWAL_CHECK: Final = timedelta(minutes=1)
STOP_GRACE: Final = timedelta(seconds=5)
"""For killed guests to be gone and their receipts to be written."""

GOODBYE_GRACE: Final = timedelta(seconds=2)
"""For the last receipts to be acknowledged; unacknowledged ones are sent after the next start."""

_GOODBYE_POLL: Final = timedelta(milliseconds=20)


@dataclass(slots=True, kw_only=True)
class Node:
    """One node process. `run` returns after `stop`; it raises when the node cannot go on."""

    identity: NodeIdentity = field(repr=False)
    paths: NodePaths
    link: ControlPlaneLink
    sessions: SessionService
    runner: OrderRunner
    log: LogCheck
    admissions: Admissions
    leases: Leases
    spool: Spool
    cache: ArtifactCache
    sandbox: Sandbox
    metrics: NodeMetrics
    clock: Clock
    drain_timeout: timedelta
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """Begin to drain; called again, do not wait for running guests any more."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def run(self) -> None:
        """Serve until stopped.

        Raises:
            NodeEvictedError, NodeQuarantinedError: The control plane has ended this node's identity.
            SpoolCorruptError: Receipts cannot be written any more.
        """
        orders_end = asyncio.Event()
        self.log.changed = self.sessions.announce
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.runner.run(orders_end))
                helpers = [
                    tasks.create_task(work)
                    for work in (
                        self.sessions.run(),
                        self.log.run(),
                        self._watch_leases(),
                        self._renew_certificate(),
                    )
                ]
                await self._stopping.wait()
                await self._drain()
                orders_end.set()
                for helper in helpers:
                    helper.cancel()
        except BaseExceptionGroup as group:
            raise _first_of(group) from None
        finally:
            await self.link.close()
            await self.spool.close()

    async def readiness(self) -> Readiness:
        """Whether the node takes orders now."""
        if self.admissions.draining:
            return Readiness(ready=False, detail="draining")
        if not self.sessions.is_connected:
            return Readiness(ready=False, detail="no session with a control plane")
        if self.log.problem():
            return Readiness(ready=False, detail=f"the log is not believed: {self.log.problem()}")
        return Readiness(ready=True)

    def collect(self) -> None:
        """Bring the gauges up to date."""
        stats, metrics = self.sandbox.stats(), self.metrics
        metrics.slots.set(self.admissions.slots)
        left = self.link.certificate.not_after - self.clock.now()
        metrics.certificate_seconds.set(left.total_seconds())
        seen = self.log.seen()
        metrics.log_size.set(0 if seen is None else seen.size)
        metrics.log_forked.set(bool(self.log.problem()))
        metrics.free_slots.set(self.admissions.free_places(now=self.clock.monotonic()))
        for state, count in (("busy", stats.busy), ("warm", stats.warm), ("spare", stats.spares)):
            metrics.workers.labels(state).set(count)
        metrics.worker_events = {
            "spawned": stats.spawned,
            "crashed": stats.crashed,
            "discarded": stats.discarded,
            "run": stats.runs,
            "warm_hit": stats.warm_hits,
        }
        metrics.cache_events = {
            "hit": self.cache.hits,
            "miss": self.cache.misses,
            "eviction": self.cache.evictions,
        }
        metrics.spool_bytes.set(self.spool.used_bytes)
        metrics.spool_receipts.set(len(self.spool.unacknowledged()))

    async def _drain(self) -> None:
        logger.info("the node drains", seconds=self.drain_timeout.total_seconds())
        self.admissions.draining = True
        self.sessions.announce()
        if not await self._orders_finished(self.drain_timeout):
            logger.warning("running guests are stopped")
            self.runner.stop_all(StopReason.NODE_STOPS)
            await self._orders_finished(STOP_GRACE)
        await self._last_receipts_acknowledged()

    async def _orders_finished(self, within: timedelta) -> bool:
        finished = asyncio.ensure_future(self.runner.finished())
        hurried = asyncio.ensure_future(self._hurry.wait())
        try:
            done, _ = await asyncio.wait(
                {finished, hurried},
                timeout=within.total_seconds(),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            finished.cancel()
            hurried.cancel()
        return finished in done

    async def _last_receipts_acknowledged(self) -> None:
        deadline = self.clock.monotonic() + GOODBYE_GRACE.total_seconds()
        while self.sessions.is_connected and self.spool.unacknowledged():
            if self.clock.monotonic() > deadline:
                return
            await asyncio.sleep(_GOODBYE_POLL.total_seconds())

    async def _watch_leases(self) -> NoReturn:
        while True:
            now = self.clock.monotonic()
            for attempt in self.leases.expired(now=now):
                logger.warning("a lease ran out", execution_id=attempt.execution_id)
                self.runner.stop(attempt, StopReason.LEASE_LOST)
            self.runner.return_overdue()
            self.runner.stop_revoked()
            pause = LEASE_WATCH.total_seconds()
            next_end = self.leases.next_end()
            if next_end is not None:
                pause = min(pause, max(next_end - now, 0))
            await asyncio.sleep(pause)

    async def _renew_certificate(self) -> NoReturn:
        certificate = self.identity.certificate
        csr = make_csr(load_tls_key(self.identity.tls_key_pem))
        while True:
            wait = renewal_due_at(certificate) - self.clock.now()
            if wait > timedelta(0):
                # In steps, because the wall clock may be set.
                await asyncio.sleep(min(wait, RENEWAL_CHECK).total_seconds())
                continue
            if not self.sessions.is_connected:
                await asyncio.sleep(RENEWAL_WAIT.total_seconds())
                continue
            try:
                certificate = await self._renewed_certificate(csr)
            except Exception as error:
                # Whatever it is, the old certificate counts for a third of its life yet.
                logger.warning("certificate not renewed", exc_info=error)
                await asyncio.sleep(RENEWAL_RETRY.total_seconds())
                continue
            logger.info("certificate renewed", not_after=certificate.not_after.isoformat())
            self.link.use_certificate(certificate)
            self.sessions.reconnect()
            # A certificate that is due at once again must not make this a loop without a pause.
            await asyncio.sleep(RENEWAL_WAIT.total_seconds())

    async def _renewed_certificate(self, csr: bytes) -> Certificate:
        chain = await self.link.renew_certificate(csr)
        identity = self.identity
        check_certificate(
            chain,
            tls_key_pem=identity.tls_key_pem,
            spiffe_id=node_spiffe_id(identity.installation, identity.node_id),
        )
        return await asyncio.to_thread(write_certificate, self.paths.certificate, chain)


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended the node; the others are its consequences."""
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
