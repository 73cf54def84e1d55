"""One live stream of a node on this replica: what it offers, what it holds, what is on its way to it.

Memory of one replica only: Postgres decides who holds a lease; this decides whom to ask next.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Protocol

from agentfactory.v1 import nodes_pb2

from control_plane.dispatch.budget import Budget
from control_plane.dispatch.chain import ReceiptChain
from control_plane.dispatch.outbox import Outbox
from control_plane.executions.domain import Placement
from control_plane.nodes.domain import NOTHING_SEEN, EngineInfo, LogSeen, SpoolHead
from shared.digests import Digest
from shared.errors import AgentFactoryError, ReceiptConflictError
from shared.ids import BootId, ExecutionId, NodeId, TenantId
from shared.manifest import Profile
from shared.receipts import ExpectedReceipt
from shared.signatures import PublicKey

MAX_QUEUED_MESSAGES: Final = 1024
"""Messages waiting for one node to read them (design section 6)."""

MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
"""Of those messages: four claims full of the largest inline inputs."""

MAX_RECEIPT_BATCHES: Final = 64
"""Receipt batches of one session on their way to the database; its stream is not read beyond that."""
MAX_RECEIPT_BYTES: Final = 16 * 1024 * 1024
"""Of those batches: four of the largest."""

MAX_REMEMBERED_DIGESTS: Final = 8192
"""Module digests remembered as cached on one node."""

OFFER_SHARE: Final = 0.625
"""Of a lease: age at which a heartbeat offers nothing any more, because the first lease counts from it."""

ACK_LINGER: Final = timedelta(milliseconds=20)
"""How long acknowledgements are collected: nobody waits for them but room in the node's spool."""
MAX_ACKS_PER_MESSAGE: Final = 1024

MAX_TOO_NEW: Final = 1024
"""Waiting executions that a session remembers as too new for its node; the oldest are forgotten."""
TOO_NEW_FOR: Final = timedelta(seconds=5)
"""How long it remembers one: the node will not learn, but what waited may have run elsewhere."""

KEYSET_GRACE: Final = timedelta(seconds=10)
"""How long a node may take to put a keyset in force: the key that signs next waits for the slowest."""

AttemptKey = tuple[ExecutionId, int]
"""Execution and fencing token: what names an attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message to a node, and the placements whose orders it carries."""

    message: nodes_pb2.SessionResponse
    placements: tuple[Placement, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldAttempt:
    """An attempt that a session is believed to hold."""

    execution_id: ExecutionId
    attempt_number: int
    fencing_token: int
    order: ExpectedReceipt | None = None
    """What was ordered; None for an attempt that was taken over from an earlier session."""
    runs_alone: bool = False
    since: float = 0.0
    """Monotonic second at which the slot was taken."""

    @property
    def key(self) -> AttemptKey:
        return (self.execution_id, self.fencing_token)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRenewal:
    """A renewal, and what the session held when it came: an attempt that ends meanwhile is not taken over."""

    message: nodes_pb2.LeaseRenewal
    held: frozenset[AttemptKey]


class CacheListener(Protocol):
    """Keeps count of which sessions have which module."""

    def __call__(self, session: "LiveSession", digest: Digest, *, there: bool) -> None: ...


@dataclass(slots=True, kw_only=True)
class LiveSession:
    """One live stream of one node. Owned by this replica's `Fleet`; changed only on the event loop."""

    node_id: NodeId
    boot_id: BootId
    tenant_id: TenantId
    session_epoch: int
    zone: str
    engine: EngineInfo
    profiles: Mapping[Profile, Digest]
    """The configuration of its engine under each profile that the node offers."""
    order_type: str
    slots: int
    lease: timedelta
    """What the node was told: how long an attempt is its own after the last word of it."""
    receipt_key: PublicKey
    ends_at: float
    """Monotonic second at which the stream ends to let the node find another replica."""
    last_message_at: float
    draining: bool = False
    """An operator wants it empty."""
    node_is_draining: bool = False
    """The node itself takes no more."""
    engine_is_denied: bool = False
    """The installation trusts its engine no more: no further orders."""
    keyset_version: int = 0
    """What the node has acknowledged."""
    log_seen: LogSeen = NOTHING_SEEN
    keyset_sent: int = 0
    """What was last sent to it."""
    keyset_sent_at: float = 0.0
    """Monotonic second of that."""
    takes_freshness: bool = False
    """Whether the node knows statements of freshness."""
    freshness_sent: bytes = b""
    spool_head: SpoolHead = field(default_factory=SpoolHead)
    chain: ReceiptChain = field(default_factory=ReceiptChain)
    receipts_open: Budget = field(
        default_factory=lambda: Budget(max_items=MAX_RECEIPT_BATCHES, max_bytes=MAX_RECEIPT_BYTES)
    )
    """Receipt batches that may be under way to the database."""
    renewal: WaitingRenewal | None = None
    """The newest renewal that waits for the one under way."""
    renewing: bool = False
    open_host_calls: int = 0
    """Questions of its guests that are not answered yet."""
    heartbeat_number: int = 0
    heartbeat_at: float | None = None
    """Monotonic second of the newest heartbeat; None before the first: no offer yet."""
    on_cached: CacheListener | None = None
    """Told when a module comes to the node's disk or is forgotten."""
    outbox: Outbox[Outgoing] = field(init=False)
    _held: dict[AttemptKey, HeldAttempt] = field(default_factory=dict)
    _held_alone: set[AttemptKey] = field(default_factory=set)
    """Those of `_held` beside which nothing may run."""
    _cached: OrderedDict[Digest, None] = field(default_factory=OrderedDict)
    _too_new: OrderedDict[ExecutionId, float] = field(default_factory=OrderedDict)
    """By the monotonic second at which they are looked at again."""
    _unexplained: int = 0
    _acknowledged: list[int] = field(default_factory=list)
    """Receipts on record of which the node will be told in a moment."""
    _acknowledging: asyncio.TimerHandle | None = None
    _capacity: int = 0
    """Orders that it wants to hold at once: slots, and a queue whose length it decides."""

    def __post_init__(self) -> None:
        self.outbox = Outbox(
            limit=MAX_QUEUED_MESSAGES,
            max_bytes=MAX_QUEUED_BYTES,
            size_of=lambda outgoing: outgoing.message.ByteSize(),
            owner=self.node_id,
        )

    # --- what it offers

    def free_slots(self, now: float) -> int:
        """Return how many orders it may get at monotonic second `now`, its queue included."""
        is_closed = self.draining or self.node_is_draining or self.engine_is_denied or self.outbox.is_closed
        if is_closed or self.heartbeat_at is None:
            return 0
        if now - self.heartbeat_at >= OFFER_SHARE * self.lease.total_seconds():
            return 0
        if self._held_alone:
            return 0
        return max(0, self._capacity - len(self._held) - self._unexplained)

    def first_lease(self, now: float) -> timedelta:
        """Return how long an order that leaves now is the node's own.

        The node counts it from sending the heartbeat that offered the place (rule 9), so what counts from
        hearing it is never shorter; and what is given to a node that died ends with what it held.
        """
        assert self.heartbeat_at is not None, "nothing was offered"
        return self.lease - timedelta(seconds=now - self.heartbeat_at)

    def idle_slots(self) -> int:
        """Return how many more guests could run there at once: orders beyond that would wait in its queue."""
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

    def attempt_of_order(self, order_digest: Digest) -> HeldAttempt | None:
        """Return the held attempt whose order has this digest."""
        return next(
            (held for held in self._held.values() if held.order and held.order.order_digest == order_digest),
            None,
        )

    def inherit(self, older: "LiveSession") -> None:
        """Take over what an older session of the same process holds."""
        if older.boot_id == self.boot_id:
            for attempt in older.held():
                self.hold(attempt)

    def hold(self, attempt: HeldAttempt) -> None:
        """Count a slot as taken."""
        self._held[attempt.key] = attempt
        if attempt.runs_alone:
            self._held_alone.add(attempt.key)

    def release(self, key: AttemptKey) -> bool:
        """Give a slot back; False when it was not held."""
        self._held_alone.discard(key)
        return self._held.pop(key, None) is not None

    def pass_over(self, execution_id: ExecutionId, now: float) -> None:
        """Note that this execution is not for the node; see `orders.is_for`."""
        self._too_new[execution_id] = now + TOO_NEW_FOR.total_seconds()
        self._too_new.move_to_end(execution_id)
        if len(self._too_new) > MAX_TOO_NEW:
            self._too_new.popitem(last=False)

    def too_new(self, now: float) -> tuple[ExecutionId, ...]:
        """Return the waiting executions that are to be passed over."""
        while self._too_new and next(iter(self._too_new.values())) <= now:
            self._too_new.popitem(last=False)
        return tuple(self._too_new)

    # --- what it says

    def take_heartbeat(self, *, number: int, free_slots: int, now: float, capacity: int = 0) -> None:
        """Note an offer. Places that the node calls busy and nobody here explains are not offered.

        Orders and receipts on their way make the node's count lower than ours: no reason to offer more.
        A node that names no capacity has its slots.
        """
        self.heartbeat_number = number
        self.heartbeat_at = now
        self._capacity = capacity or self.slots
        busy = self._capacity - min(free_slots, self._capacity)
        self._unexplained = max(0, busy - len(self._held))

    def head_moved(self, head: SpoolHead) -> bool:
        """Whether a head is another than the known one, so that its signature needs a look."""
        return (head.sequence, head.hash) != (self.spool_head.sequence, self.spool_head.hash)

    def move_head(self, head: SpoolHead) -> None:
        """Note a spool head whose signature holds.

        Raises:
            ReceiptConflictError: The chain went back or was rewritten within one session.
        """
        if head.sequence <= self.spool_head.sequence:
            raise ReceiptConflictError(
                f"spool of node {self.node_id} went from {self.spool_head.sequence} to {head.sequence},"
                " or holds another receipt there"
            )
        self.spool_head = head

    def remember_cached(self, digests: Iterable[Digest]) -> None:
        """Note modules that are on the node's disk, newest last, within a bound."""
        for digest in digests:
            self._cached[digest] = None
            self._cached.move_to_end(digest)
            if self.on_cached is not None:
                self.on_cached(self, digest, there=True)
        while len(self._cached) > MAX_REMEMBERED_DIGESTS:
            forgotten, _ = self._cached.popitem(last=False)
            if self.on_cached is not None:
                self.on_cached(self, forgotten, there=False)

    def cached(self) -> tuple[Digest, ...]:
        """Return the modules that are on the node's disk as far as this replica knows."""
        return tuple(self._cached)

    def has_cached(self, digest: Digest) -> bool:
        return digest in self._cached

    # --- what is said to it

    def tell_keyset(self, version: int, keyset: bytes, now: float) -> None:
        """Send a keyset unless it was sent; `now` is monotonic."""
        if self.keyset_sent < version:
            self.keyset_sent, self.keyset_sent_at = version, now
            self.send(nodes_pb2.SessionResponse(keyset_update=nodes_pb2.KeysetUpdate(keyset=keyset)))

    def tell_freshness(self, statement: bytes) -> None:
        """Send a statement of freshness unless it was sent, or the node would not know what it is."""
        if self.takes_freshness and statement and statement != self.freshness_sent:
            self.freshness_sent = statement
            self.send(nodes_pb2.SessionResponse(freshness=nodes_pb2.Freshness(statement=statement)))

    def keyset_is_overdue(self, now: float) -> bool:
        """Whether the node offers slots, has had a keyset for long, and does not say that it is in force."""
        is_behind = self.heartbeat_at is not None and self.keyset_version < self.keyset_sent
        return is_behind and now - self.keyset_sent_at >= KEYSET_GRACE.total_seconds()

    def acknowledge(self, sequences: Iterable[int]) -> None:
        """Tell the node, in a moment and together with others, that these receipts are on record."""
        self._acknowledged.extend(sequences)
        if self._acknowledging is None:
            loop = asyncio.get_running_loop()
            self._acknowledging = loop.call_later(ACK_LINGER.total_seconds(), self._send_acks)

    def _send_acks(self) -> None:
        self._acknowledging = None
        while self._acknowledged:
            sequences, self._acknowledged = (
                self._acknowledged[:MAX_ACKS_PER_MESSAGE],
                self._acknowledged[MAX_ACKS_PER_MESSAGE:],
            )
            self.send(nodes_pb2.SessionResponse(receipt_ack=nodes_pb2.ReceiptAck(sequences=sequences)))

    def send(self, message: nodes_pb2.SessionResponse, placements: tuple[Placement, ...] = ()) -> bool:
        """Queue a message; False when the session is over."""
        return self.outbox.put(Outgoing(message=message, placements=placements))

    def answer(self, message: nodes_pb2.SessionResponse) -> bool:
        """Queue the answer to a host call, behind what leases and orders depend on."""
        return self.outbox.put_behind(Outgoing(message=message))

    def end(self, error: AgentFactoryError | None = None) -> None:
        """End the stream; attempts and leases are not touched by it."""
        if self._acknowledging is not None:
            self._acknowledging.cancel()
            self._send_acks()
        self.outbox.close(error)
