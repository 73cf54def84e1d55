"""The bounds and intervals of dispatch, each with its unit. Filled from settings; reads none."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

MAX_BATCH_ORDERS: Final = 256
"""Orders under one signature (design section 6)."""

MAX_MESSAGE_BYTES: Final = 3 * 1024 * 1024
"""Orders of one message: below the 4 MiB that gRPC carries, with room for the envelope."""

MAX_ORDER_LIFE: Final = timedelta(seconds=60)
"""Longest time in which an order may be started (rule 4); nodes keep nonces that long."""

MAX_CLOCK_SKEW: Final = timedelta(seconds=30)
"""A session whose clock is further off is refused (rule 9). Exactly this much is let in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchOptions:
    """How one replica dispatches."""

    installation: str
    epoch: int
    replica_id: str
    zone: str = ""
    """Where this replica is; nodes of the same zone are preferred for newcomers."""
    lease: timedelta = timedelta(seconds=4)
    heartbeat_every: timedelta = timedelta(seconds=1)
    heartbeat_timeout: timedelta = timedelta(seconds=5)
    """Silence after which a stream is closed; the attempts of its node go on."""
    hello_deadline: timedelta = timedelta(seconds=10)
    order_life: timedelta = MAX_ORDER_LIFE
    max_session_age: timedelta = timedelta(minutes=10)
    """Streams end between half of it and all of it, so that nodes spread over replicas again."""
    poll_every: timedelta = timedelta(seconds=1)
    sweep_every: timedelta = timedelta(milliseconds=250)
    """Between two looks for leases and deadlines that ran out: what a dead node held waits longer by it."""
    keyset_poll_every: timedelta = timedelta(seconds=5)
    sign_deadline: timedelta = timedelta(seconds=5)
    store_deadline: timedelta = timedelta(seconds=10)
    signing_pause: timedelta = timedelta(seconds=1)
    """Rest after a failed signature before slots are used again."""
    record_linger: timedelta = timedelta(milliseconds=100)
    """How long a batch's signature waits for a receipt that brings it on record along."""
    start_linger: timedelta = timedelta(milliseconds=20)
    """How long started attempts are collected before they are noted; those that end first need no note."""
    sweep_limit: int = 500
    """Rows that one sweep changes in one transaction."""

    def __post_init__(self) -> None:
        if not timedelta(0) < self.order_life <= MAX_ORDER_LIFE:
            raise ValueError(f"order life must be within {MAX_ORDER_LIFE}, not {self.order_life}")
        if self.lease <= 2 * self.heartbeat_every:
            raise ValueError(f"lease {self.lease} does not outlast two heartbeats of {self.heartbeat_every}")
