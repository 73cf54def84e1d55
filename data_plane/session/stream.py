"""One session: one bidi stream from Hello to its end. Knows nothing of channels, reconnecting or running.

Reads in one task, writes in another, beats in a third, uploads in a fourth; the first that fails ends all.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NoReturn, Protocol

from agentfactory.v1 import nodes_pb2

from data_plane.artifacts.cache import ArtifactCache
from data_plane.metrics import NodeMetrics
from data_plane.orders.admission import Admissions
from data_plane.orders.freshness import Freshness
from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.log_check import LogCheck
from data_plane.orders.verifier import NodeFacts
from data_plane.receipts.issuer import ReceiptIssuer
from data_plane.receipts.ports import ReceiptSpool
from data_plane.session import convert
from data_plane.session.chain import check_chain
from data_plane.session.clock_watch import ClockWatch
from data_plane.session.host_calls import HostCallRelay
from data_plane.session.leases import Leases
from data_plane.session.outbox import Outbox
from data_plane.session.ports import OrderTaker, OutputSink
from shared.clock import Clock
from shared.digests import Digest  # noqa: TC001 - imports stay in one place
from shared.errors import (
    AgentFactoryError,
    DeadlineExceededError,
    MalformedError,
    NodeEvictedError,
    UnavailableError,
    UnknownKeyError,
    UnsupportedVersionError,
    VerificationError,
)
from shared.freshness import FORMAT as FRESHNESS_FORMAT
from shared.logs import get_logger
from shared.orders import MAX_LEASE, ORDER_FORMATS

logger = get_logger(__name__)

ACCEPTED_ORDER_TYPES: Final = ORDER_FORMATS
ACCEPTED_TYPES: Final = (*ACCEPTED_ORDER_TYPES, FRESHNESS_FORMAT)

WELCOME_DEADLINE: Final = timedelta(seconds=10)
WRITE_DEADLINE: Final = timedelta(seconds=10)
UPLOAD_RETRY_PAUSE: Final = timedelta(seconds=1)
MIN_HEARTBEAT: Final = timedelta(milliseconds=100)
MAX_HEARTBEAT: Final = timedelta(seconds=10)
"""What a control plane may ask of this node, as its lease up to `MAX_LEASE`; else the session is refused."""

MAX_CONTROL_MESSAGES: Final = 64
"""Heartbeats and renewals that wait to be written; beyond it the stream is stuck."""

MAX_HELLO_DIGESTS: Final = 4096
MAX_HEARTBEAT_DIGESTS: Final = 256


class Stream(Protocol):
    """The two directions of a session."""

    async def write(self, message: nodes_pb2.SessionRequest) -> None: ...

    def __aiter__(self) -> AsyncIterator[nodes_pb2.SessionResponse]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionParts:
    """What every session of a node works with."""

    facts: NodeFacts
    zone: str
    keyset: NodeKeyset
    freshness: Freshness
    log: LogCheck
    leases: Leases
    admissions: Admissions
    cache: ArtifactCache
    spool: ReceiptSpool
    issuer: ReceiptIssuer
    outbox: Outbox
    host_calls: HostCallRelay
    orders: OrderTaker
    outputs: OutputSink
    metrics: NodeMetrics
    clock: Clock


class HeartbeatCounter:
    """Numbers heartbeats and renewals over all sessions of one boot."""

    def __init__(self) -> None:
        self.heartbeats = 0
        self.renewals = 0


class Session:
    """One stream. `run` returns when the control plane ends it, and raises when it breaks."""

    def __init__(self, parts: SessionParts, counter: HeartbeatCounter, stream: Stream) -> None:
        self._parts = parts
        self._counter = counter
        self._stream = stream
        self._clock_watch = ClockWatch(parts.clock)
        self._control: deque[nodes_pb2.SessionRequest] = deque()
        self._heartbeat_every = MIN_HEARTBEAT
        self._lease = MAX_LEASE
        self._open_renewals: OrderedDict[int, float] = OrderedDict()
        self._told_digests: set[Digest] = set()
        self._handlers: dict[str, Callable[[nodes_pb2.SessionResponse], None]] = {
            "order_batch": self._take_orders,
            "receipt_ack": lambda message: self._parts.outbox.acknowledged(message.receipt_ack.sequences),
            "lease_granted": lambda message: self._take_grant(message.lease_granted),
            "cancel": lambda message: self._parts.orders.cancel(
                convert.attempt_from_proto(message.cancel.attempt)
            ),
            "drain": lambda message: self._take_drain(message.drain),
            "host_reply": lambda message: self._parts.host_calls.answered(message.host_reply),
            "freshness": lambda message: self._take_freshness(message.freshness.statement),
            "keyset_update": lambda message: self._take_keyset(message.keyset_update.keyset),
        }

    async def run(self, opened: Callable[[], None]) -> None:
        """Say hello, then serve until the stream ends; `opened` is called once the node is welcome.

        Raises:
            UnavailableError: The stream is stuck, its leases are not answered, or the clock here was set.
            NodeEvictedError: The node's identity has ended.
            VerificationError: The keyset offered does not verify, or is an older one.
            MalformedError: The control plane sent what no node can read.
            AgentFactoryError: What the control plane said when it refused the session.
        """
        replies = aiter(self._stream)
        await self._hello(replies)
        opened()
        try:
            async with asyncio.TaskGroup() as tasks:
                helpers = [tasks.create_task(work) for work in (self._write(), self._beat(), self._upload())]
                await self._read(replies)
                for helper in helpers:
                    helper.cancel()
        except BaseExceptionGroup as group:
            raise _first_of(group) from None

    def announce(self) -> None:
        """Send a heartbeat before the next one is due."""
        self._queue_heartbeat()

    async def _hello(self, replies: AsyncIterator[nodes_pb2.SessionResponse]) -> None:
        parts = self._parts
        cached = parts.cache.digests()[:MAX_HELLO_DIGESTS]
        self._told_digests.update(cached)
        hello = convert.hello_to_proto(
            node_id=parts.facts.node_id,
            boot_id=parts.facts.boot_id,
            accepts=ACCEPTED_TYPES,
            engines=parts.facts.engines,
            slots=parts.admissions.slots,
            cached=cached,
            now=parts.clock.now(),
            head=parts.issuer.signed_head(),
            zone=parts.zone,
            keyset_version=parts.keyset.version,
            layers=parts.facts.layers,
        )
        try:
            async with asyncio.timeout(WELCOME_DEADLINE.total_seconds()):
                await self._stream.write(hello)
                first = await anext(replies)
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"no welcome within {WELCOME_DEADLINE.total_seconds():g} s"
            ) from error
        except StopAsyncIteration as error:
            raise UnavailableError("the control plane ended the session before its welcome") from error
        if first.WhichOneof("message") != "welcome":
            raise MalformedError("the first message of the control plane is not a welcome")
        self._take_welcome(first.welcome)

    def _take_welcome(self, welcome: nodes_pb2.Welcome) -> None:
        # The keyset before anything else: it decides whether anything else here can be believed.
        self._take_keyset(welcome.keyset)
        if welcome.freshness:
            self._take_freshness(welcome.freshness)
        if welcome.order_type not in ACCEPTED_ORDER_TYPES:
            raise UnsupportedVersionError(f"orders would be of type {welcome.order_type[:64]!r}")
        check_chain(self._parts.spool, convert.head_from_proto(welcome.last_accepted))
        try:
            heartbeat_every = welcome.heartbeat_every.ToTimedelta()
            lease = welcome.lease.ToTimedelta()
        except (ValueError, OverflowError) as error:
            raise MalformedError(f"the welcome holds a duration that is none: {error}") from error
        if not MIN_HEARTBEAT <= heartbeat_every <= MAX_HEARTBEAT or not heartbeat_every < lease <= MAX_LEASE:
            raise MalformedError(f"heartbeats every {heartbeat_every} with a lease of {lease} are refused")
        self._heartbeat_every, self._lease = heartbeat_every, lease
        logger.info(
            "session opened", session_epoch=welcome.session_epoch, keyset_version=self._parts.keyset.version
        )
        self._parts.outbox.restart()
        self._parts.host_calls.restart()

    async def _read(self, replies: AsyncIterator[nodes_pb2.SessionResponse]) -> None:
        async for message in replies:
            kind = message.WhichOneof("message")
            handler = self._handlers.get(kind or "")
            if handler is None:
                raise MalformedError(f"the control plane sent {kind or 'a message of an unknown kind'}")
            handler(message)

    def _take_orders(self, message: nodes_pb2.SessionResponse) -> None:
        batch = message.order_batch
        self._parts.outbox.came(batch.envelope)
        self._parts.orders.receive(batch.envelope, [convert.delivery_from_proto(one) for one in batch.orders])

    def _take_grant(self, granted: nodes_pb2.LeaseGranted) -> None:
        while self._open_renewals and next(iter(self._open_renewals)) <= granted.number:
            self._open_renewals.popitem(last=False)
        attempts = [convert.attempt_from_proto(one) for one in granted.attempts]
        for attempt in self._parts.leases.granted(granted.number, attempts, lease=self._lease):
            self._parts.orders.lease_lost(attempt)

    def _take_drain(self, drain: nodes_pb2.Drain) -> None:
        if drain.evicted:
            raise NodeEvictedError("the control plane has ended this node's identity")
        logger.warning("this node drains: it takes no more orders")
        self._parts.admissions.draining = True
        self._queue_heartbeat()

    def _take_keyset(self, envelope: bytes) -> None:
        try:
            is_newer = self._parts.keyset.offer(envelope)
        except VerificationError:
            self._parts.metrics.signature_failures.labels("keyset").inc()
            raise
        self._parts.metrics.keyset_version.set(self._parts.keyset.version)
        if is_newer:
            self._parts.orders.keyset_changed()
        if is_newer and self._counter.heartbeats:
            # Tells the control plane that this keyset is in force here (rule 12).
            self._queue_heartbeat()

    def _take_freshness(self, statement: bytes) -> None:
        was_stale = bool(self._parts.freshness.problem())
        try:
            self._parts.freshness.take(statement)
        except UnknownKeyError as error:
            # By a key that has ended, or that the next keyset names: it counts for nothing, and is no attack.
            logger.warning("a statement of freshness does not count", error=str(error))
        except VerificationError:
            self._parts.metrics.signature_failures.labels("freshness").inc()
            raise
        if was_stale and self._counter.heartbeats:
            # Slots are offered again without waiting for the next beat.
            self._queue_heartbeat()

    async def _beat(self) -> NoReturn:
        while True:
            self._queue_heartbeat()
            self._queue_renewal()
            self._parts.outbox.resend_unanswered()
            await asyncio.sleep(self._heartbeat_every.total_seconds())
            self._clock_watch.check()
            self._check_answers()

    def _queue_heartbeat(self) -> None:
        parts = self._parts
        self._counter.heartbeats += 1
        number = self._counter.heartbeats
        new = [digest for digest in parts.cache.digests() if digest not in self._told_digests]
        new = new[:MAX_HEARTBEAT_DIGESTS]
        self._told_digests.update(new)
        now = parts.clock.monotonic()
        heartbeat = nodes_pb2.Heartbeat(
            number=number,
            free_slots=self._wanted(now),
            capacity=parts.admissions.capacity(now=now),
            spool_head=convert.head_to_proto(parts.issuer.signed_head()),
            keyset_version=parts.keyset.version,
            cached_digests=new,
            draining=parts.admissions.draining,
            log=convert.log_to_proto(parts.log.seen()),
        )
        # Counted from before it is written: the node's count of a lease must never be the longer one.
        parts.leases.heartbeat_sent(number, at=now)
        self._queue(nodes_pb2.SessionRequest(heartbeat=heartbeat))

    def _wanted(self, now: float) -> int:
        """Return how many orders this node wants: none that it would refuse."""
        parts = self._parts
        if parts.freshness.problem() or parts.log.problem():
            return 0
        return parts.admissions.free_places(now=now)

    def _queue_renewal(self) -> None:
        parts = self._parts
        self._counter.renewals += 1
        number, now = self._counter.renewals, parts.clock.monotonic()
        attempts = parts.leases.renewal_sent(number, at=now)
        if attempts:
            self._open_renewals[number] = now
            self._queue(convert.renewal_to_proto(number, attempts))

    def _queue(self, message: nodes_pb2.SessionRequest) -> None:
        if len(self._control) >= MAX_CONTROL_MESSAGES:
            raise UnavailableError(f"{MAX_CONTROL_MESSAGES} messages wait for a stream that takes none")
        self._control.append(message)
        self._parts.outbox.changed.set()

    def _check_answers(self) -> None:
        if not self._open_renewals:
            return
        oldest = next(iter(self._open_renewals.values()))
        silence = self._parts.clock.monotonic() - oldest
        if silence > self._lease.total_seconds():
            raise UnavailableError(f"a lease renewal is unanswered for {silence:.1f} s")

    async def _write(self) -> NoReturn:
        outbox = self._parts.outbox
        while True:
            outbox.changed.clear()
            while self._control:
                await self._send(self._control.popleft())
            receipts = await outbox.next_receipts()
            if receipts:
                await self._send(convert.receipts_to_proto(receipts))
            started = outbox.next_started()
            if started:
                await self._send(convert.started_to_proto(started))
            questions = self._parts.host_calls.next_questions()
            for question in questions:
                await self._send(question)
            if not receipts and not started and not questions:
                await outbox.changed.wait()

    async def _send(self, message: nodes_pb2.SessionRequest) -> None:
        try:
            async with asyncio.timeout(WRITE_DEADLINE.total_seconds()):
                await self._stream.write(message)
        except TimeoutError as error:
            raise UnavailableError(f"a write took over {WRITE_DEADLINE.total_seconds():g} s") from error

    async def _upload(self) -> NoReturn:
        """Send bodies above 64 KiB, one receipt after another, each before its receipt."""
        outbox, spool = self._parts.outbox, self._parts.spool
        while True:
            receipt = await outbox.next_upload()
            try:
                if receipt.attempt is not None:
                    for body in receipt.uploads:
                        content = await spool.read_body(body)
                        await self._parts.outputs.upload_body(receipt.attempt, body, content)
            except AgentFactoryError as error:
                logger.warning("an output was not uploaded", sequence=receipt.sequence, error=str(error))
                await asyncio.sleep(UPLOAD_RETRY_PAUSE.total_seconds())
                outbox.upload_failed(receipt)
                continue
            outbox.uploaded(receipt.sequence)


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended the session; the others are its consequences."""
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
