"""What is counted of keys, in Prometheus' form, and a custodian that is measured."""

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from control_plane.keys.domain import CustodyKey
from control_plane.keys.ports import KeyCustody, KeyObserver
from shared.clock import Clock
from shared.errors import KeyUnavailableError
from shared.keyset import KeyPurpose
from shared.signatures import Signature

T = TypeVar("T")

BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds: from a key in memory to a custodian that is given up."""


class KeyMetrics:
    """Implements `KeyObserver`."""

    def __init__(self, registry: CollectorRegistry, clock: Clock) -> None:
        self._clock = clock
        self._since: datetime | None = None
        self._fresh_at: datetime | None = None
        self._seconds = Histogram(
            "af_custody_seconds",
            "What the custodian of keys was asked for, by operation.",
            ["operation"],
            registry=registry,
            buckets=BUCKETS,
        )
        self._failures = Counter(
            "af_custody_failures", "What the custodian of keys did not do.", ["operation"], registry=registry
        )
        for operation in ("sign", "list", "create", "check"):
            self._failures.labels(operation)
        self._up = Gauge("af_custody_up", "Whether the custodian answered last time.", registry=registry)
        self._keyset = Gauge("af_keyset_version", "Version of the newest keyset.", registry=registry)
        self._switches = Counter("af_order_key_switches", "Order keys taken up.", registry=registry)
        age = Gauge(
            "af_order_key_age_seconds", "Age of the key that signs orders; -1: none.", registry=registry
        )
        age.set_function(lambda: self._age(self._since))
        fresh = Gauge(
            "af_freshness_age_seconds",
            "Age of the newest statement of freshness; -1: none.",
            registry=registry,
        )
        fresh.set_function(lambda: self._age(self._fresh_at))

    def custody(self, operation: str, seconds: float, problem: str) -> None:
        """See `KeyObserver.custody`."""
        self._seconds.labels(operation).observe(seconds)
        self._up.set(not problem)
        if problem:
            self._failures.labels(operation).inc()

    def signs_with(self, key: CustodyKey, since: datetime) -> None:  # noqa: ARG002 - a label per key has no bound
        """See `KeyObserver.signs_with`."""
        self._since = since
        self._switches.inc()

    def keyset(self, version: int) -> None:
        """See `KeyObserver.keyset`."""
        self._keyset.set(version)

    def statement(self, issued_at: datetime) -> None:
        """See `KeyObserver.statement`."""
        self._fresh_at = issued_at

    def _age(self, since: datetime | None) -> float:
        return -1.0 if since is None else (self._clock.now() - since).total_seconds()


class MeasuredCustody:
    """Implements `KeyCustody`: another one, measured."""

    def __init__(self, custody: KeyCustody, observer: KeyObserver) -> None:
        self._custody = custody
        self._observer = observer

    async def keys(self, purpose: KeyPurpose) -> Sequence[CustodyKey]:
        """See `KeyCustody.keys`."""
        return await self._measured("list", lambda: self._custody.keys(purpose))

    async def create(self, purpose: KeyPurpose) -> CustodyKey:
        """See `KeyCustody.create`."""
        return await self._measured("create", lambda: self._custody.create(purpose))

    async def sign(self, key: CustodyKey, data: bytes) -> Signature:
        """See `KeyCustody.sign`."""
        return await self._measured("sign", lambda: self._custody.sign(key, data))

    async def check(self) -> None:
        """See `KeyCustody.check`."""
        await self._measured("check", self._custody.check)

    async def _measured(self, operation: str, ask: Callable[[], Awaitable[T]]) -> T:
        started, problem = time.perf_counter(), "interrupted"
        try:
            answer = await ask()
            problem = ""
        except KeyUnavailableError as error:
            problem = error.reason
            raise
        finally:
            self._observer.custody(operation, time.perf_counter() - started, problem)
        return answer
