"""One live stream of a node on this replica: what it offers, what it holds, what is on its way to it.

Memory of one replica only: Postgres decides who holds a lease; this decides whom to ask next.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from agentfactory.v1 import nodes_pb2
from control_plane.dispatch.outbox import Outbox
from control_plane.nodes.domain import EngineInfo, SpoolHead
from shared.digests import Digest
from shared.errors import AgentFactoryError, ReceiptConflictError
from shared.ids import BootId, ExecutionId, NodeId, OrderId
from shared.signatures import PublicKey

MAX_QUEUED_MESSAGES: Final = 1024
"""Messages waiting for one node to read them (design section 6)."""

MAX_REMEMBERED_DIGESTS: Final = 8192
"""Module digests remembered as cached on one node."""

MAX_OFFER_AGE: Final = timedelta(milliseconds=2500)
"""Age at which a heartbeat offers nothing any more: the first lease counts from it, and lasts 4 s."""

AttemptKey = tuple[ExecutionId, int]
"""Execution and fencing token: what names an attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldAttempt:
    """An attempt that a session is believed to hold."""

    execution_id: ExecutionId
    attempt_number: int
    fencing_token: int
    order_id: OrderId | None = None
    """None for an attempt that was taken over from an earlier session of the same process."""
    runs_alone: bool = False

    @property
    def key(self) -> AttemptKey:
        return (self.execution_id, self.fencing_token)


@dataclass(slots=True, kw_only=True)
class LiveSession:
    """One live stream of one node. Owned by this replica's `Fleet`; changed only on the event loop."""

    node_id: NodeId
    boot_id: BootId
    session_epoch: int
    zone: str
    engine: EngineInfo
    order_type: str
    slots: int
    receipt_key: PublicKey
    ends_at: float
    """Monotonic second at which the stream ends to let the node find another replica."""
    last_message_at: float
    draining: bool = False
    keyset_version: int = 0
    spool_head: SpoolHead = SpoolHead()
    heartbeat_number: int = 0
    heartbeat_at: float | None = None
    """Monotonic second of the newest heartbeat; None before the first: no offer yet."""
    outbox: Outbox[nodes_pb2.SessionResponse] = field(init=False)
    _held: dict[AttemptKey, HeldAttempt] = field(default_factory=dict)
    _cached: OrderedDict[Digest, None] = field(default_factory=OrderedDict)
    _unexplained: int = 0

    def __post_init__(self) -> None:
        self.outbox = Outbox(limit=MAX_QUEUED_MESSAGES, owner=self.node_id)

    # --- what it offers

    def free_slots(self, now: float) -> int:
        """Return how many orders it may get at monotonic second `now`."""
        if self.draining or self.outbox.is_closed or self.heartbeat_at is None:
            return 0
        if now - self.heartbeat_at >= MAX_OFFER_AGE.total_seconds():
            return 0
        if any(attempt.runs_alone for attempt in self._held.values()):
            return 0
        return max(0, self.slots - len(self._held) - self._unexplained)

    @property
    def held_count(self) -> int:
        return len(self._held)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs there as far as this replica knows."""
        return not self._held and not self._unexplained

    def held(self) -> tuple[HeldAttempt, ...]:
        return tuple(self._held.values())

    def attempt(self, key: AttemptKey) -> HeldAttempt | None:
        return self._held.get(key)

    def hold(self, attempt: HeldAttempt) -> None:
        """Count a slot as taken."""
        self._held[attempt.key] = attempt

    def release(self, key: AttemptKey) -> bool:
        """Give a slot back; False when it was not held."""
        return self._held.pop(key, None) is not None

    # --- what it says

    def take_heartbeat(self, *, number: int, free_slots: int, now: float) -> None:
        """Note an offer. Slots that the node calls busy and nobody here explains are not offered.

        Orders and receipts on their way make the node's count lower than ours; that is no reason to offer more.
        """
        self.heartbeat_number = number
        self.heartbeat_at = now
        busy = self.slots - min(free_slots, self.slots)
        self._unexplained = max(0, busy - len(self._held))

    def take_head(self, head: SpoolHead) -> bool:
        """Note a signed spool head; False when it is the one already known and needs no check.

        Raises:
            ReceiptConflictError: The chain went back or was rewritten within one session.
        """
        known = self.spool_head
        if head.sequence == known.sequence and head.hash == known.hash:
            return False
        if head.sequence <= known.sequence:
            raise ReceiptConflictError(
                f"spool head of node {self.node_id} went from {known.sequence} to {head.sequence} with another hash"
            )
        return True

    def remember_cached(self, digests: Iterable[Digest]) -> None:
        """Note modules that are on the node's disk, newest last, within a bound."""
        for digest in digests:
            self._cached[digest] = None
            self._cached.move_to_end(digest)
        while len(self._cached) > MAX_REMEMBERED_DIGESTS:
            self._cached.popitem(last=False)

    def has_cached(self, digest: Digest) -> bool:
        return digest in self._cached

    # --- what is said to it

    def send(self, message: nodes_pb2.SessionResponse) -> bool:
        """Queue a message; False when the session is over."""
        return self.outbox.put(message)

    def end(self, error: AgentFactoryError | None = None) -> None:
        """End the stream; attempts and leases are not touched by it."""
        self.outbox.close(error)
