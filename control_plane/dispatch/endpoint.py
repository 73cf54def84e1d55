"""Serves sessions: reads what nodes say, writes what their outbox holds.

One node's trouble ends its own session and nothing else.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial

import structlog
from agentfactory.v1 import nodes_pb2

from control_plane.audit.domain import NewAuditEntry, node_actor, printable
from control_plane.dispatch.background import Background
from control_plane.dispatch.dispatcher import Dispatcher
from control_plane.dispatch.fleet import Fleet
from control_plane.dispatch.host_calls import HostCallDesk
from control_plane.dispatch.leases import LeaseDesk
from control_plane.dispatch.opening import SessionOpener, head_of
from control_plane.dispatch.options import DispatchOptions
from control_plane.dispatch.ports import Observer
from control_plane.dispatch.receipts import ReceiptIntake
from control_plane.dispatch.retry import retrying
from control_plane.dispatch.session import KEYSET_GRACE, LiveSession
from control_plane.nodes.domain import LogSeen
from control_plane.nodes.ports import NodeStore
from shared.clock import Clock, Random
from shared.digests import parse_digest
from shared.errors import (
    AgentFactoryError,
    InternalError,
    InvalidInputError,
    ReceiptConflictError,
    SignatureInvalidError,
    UnavailableError,
    VerificationError,
)
from shared.ids import AUDIT_ENTRY, NodeId, new_id
from shared.merkle import MAX_TREE_SIZE

logger = structlog.get_logger(__name__)


class SessionEndpoint:
    """What `NodeService.Session` does, without gRPC."""

    def __init__(
        self,
        *,
        opener: SessionOpener,
        fleet: Fleet,
        dispatcher: Dispatcher,
        desk: LeaseDesk,
        receipts: ReceiptIntake,
        host_calls: HostCallDesk,
        nodes: NodeStore,
        options: DispatchOptions,
        clock: Clock,
        random: Random,
        background: Background,
        observer: Observer,
    ) -> None:
        self._opener = opener
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._desk = desk
        self._receipts = receipts
        self._host_calls = host_calls
        self._nodes = nodes
        self._options = options
        self._clock = clock
        self._random = random
        self._background = background
        self._observer = observer
        self._closed: list[tuple[NodeId, int]] = []
        """Sessions, by node and epoch, that ended and are not noted."""
        self._noting_closed = False

    async def serve(
        self, requests: AsyncIterator[nodes_pb2.SessionRequest], *, node_id: NodeId
    ) -> AsyncGenerator[nodes_pb2.SessionResponse]:
        """Yield what the node shall read until its session ends.

        The node of the certificate is `node_id`. Reading happens in a task of its own, owned by dispatch.

        Raises:
            AgentFactoryError: Why the session was refused or ended, unless it ended as planned.
        """
        session = await self._opener.open(requests, node_id=node_id)
        self._observer.session_opened(node_id)
        logger.info("session opened", node_id=node_id, session_epoch=session.session_epoch)
        reader = None
        try:
            reader = self._background.spawn(self._read(session, requests), name="read session")
            async for outgoing in session.outbox:
                yield outgoing.message
        finally:
            if reader is not None:
                reader.cancel()
            self._close(session)

    def _close(self, session: LiveSession) -> None:
        session.end()
        self._fleet.remove(session)
        self._observer.session_closed(session.node_id)
        logger.info("session closed", node_id=session.node_id, session_epoch=session.session_epoch)
        if self._background.is_open:
            self._dispatcher.session_ended(session)
            self._closed.append((session.node_id, session.session_epoch))
            if not self._noting_closed:
                self._noting_closed = True
                self._background.spawn(self._note_closed(), name="note closed sessions")

    async def _note_closed(self) -> None:
        """Together: when a network parts, a thousand end at once, and their callers need connections too."""
        try:
            while self._closed:
                closed, self._closed = self._closed, []
                await retrying(partial(self._nodes.close_sessions, closed), what="note closed sessions")
        finally:
            self._noting_closed = False

    # --- reading

    async def _read(self, session: LiveSession, requests: AsyncIterator[nodes_pb2.SessionRequest]) -> None:
        try:
            async for request in requests:
                session.last_message_at = self._clock.monotonic()
                await self._take(session, request)
            session.end()
        except ReceiptConflictError as error:
            # Not in this task: the end of the session cancels it.
            session.end(error)
            self._background.spawn(self._receipts.quarantine(session, error), name="quarantine")
        except VerificationError as error:
            session.end(error)
            self._background.spawn(self._note_refused(session, error), name="note a refusal")
        except AgentFactoryError as error:
            session.end(error)
        except Exception:  # a bug met while reading one node must not reach another
            if not session.outbox.is_closed:  # reading a stream that has ended fails too
                logger.exception("session failed", node_id=session.node_id)
            session.end(InternalError("the session met a bug"))

    async def _take(self, session: LiveSession, request: nodes_pb2.SessionRequest) -> None:
        match request.WhichOneof("message"):
            case "heartbeat":
                self._take_heartbeat(session, request.heartbeat)
            case "attempt_started":
                self._desk.started(session, request.attempt_started)
            case "receipt_batch":
                await self._receipts.take(session, request.receipt_batch)
            case "lease_renewal":
                self._desk.renew(session, request.lease_renewal)
            case "host_call":
                self._host_calls.take(session, request.host_call)
            case other:
                raise InvalidInputError(f"a session takes no {other or 'empty message'} after its hello")

    def _take_heartbeat(self, session: LiveSession, heartbeat: nodes_pb2.Heartbeat) -> None:
        if session.heartbeat_at is not None and heartbeat.number <= session.heartbeat_number:
            raise InvalidInputError(
                f"heartbeat {heartbeat.number} of node {session.node_id} came after"
                f" {session.heartbeat_number}"
            )
        head = head_of(heartbeat.spool_head)
        if session.head_moved(head):
            try:
                session.receipt_key.verify(
                    head.signature, head.signed_bytes(session.node_id, session.boot_id)
                )
            except SignatureInvalidError:
                self._observer.signature_failure("spool_head")
                raise
            session.move_head(head)
        session.keyset_version = heartbeat.keyset_version
        session.node_is_draining = heartbeat.draining
        self._take_log(session, heartbeat.log)
        session.remember_cached(parse_digest(digest) for digest in heartbeat.cached_digests)
        session.take_heartbeat(
            number=heartbeat.number,
            free_slots=heartbeat.free_slots,
            capacity=heartbeat.capacity,
            now=self._clock.monotonic(),
        )
        self._dispatcher.slots_offered()

    def _take_log(self, session: LiveSession, seen: nodes_pb2.LogSeen) -> None:
        problem = printable(seen.problem)
        if problem and not session.log_seen.problem:
            logger.error("a node does not believe the log", node_id=session.node_id, problem=problem)
        # What it says of it is shown; nothing here depends on it.
        size = min(seen.size, MAX_TREE_SIZE)
        session.log_seen = LogSeen(size=size, root=seen.root, problem=problem)

    async def _note_refused(self, session: LiveSession, error: VerificationError) -> None:
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=session.tenant_id,
            actor=node_actor(session.node_id),
            action="node.receipt_refused",
            subject=session.node_id,
            result=error.reason,
            details={"message": str(error)[:256]},
        )
        await retrying(lambda: self._nodes.record(entry), what="record a refusal")

    # --- keeping watch

    def end_stale(self) -> None:
        """End streams that are silent or reached their age. Attempts and leases are not touched."""
        now = self._clock.monotonic()
        for session in self._fleet:
            if now - session.last_message_at >= self._options.heartbeat_timeout.total_seconds():
                session.end(
                    UnavailableError(
                        f"nothing came from node {session.node_id} for"
                        f" {self._options.heartbeat_timeout.total_seconds():g} s"
                    )
                )
            elif session.keyset_is_overdue(now):
                session.end(
                    UnavailableError(
                        f"node {session.node_id} has keyset {session.keyset_version} in force, not"
                        f" {session.keyset_sent}, for {KEYSET_GRACE.total_seconds():g} s"
                    )
                )
            elif now >= session.ends_at:
                session.end()
