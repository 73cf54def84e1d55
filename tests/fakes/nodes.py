"""Nodes, tokens and sessions in memory. Passes the same contract suite as Postgres."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from control_plane.audit.domain import NewAuditEntry
from control_plane.executions.domain import UnsignedOrder
from control_plane.nodes.domain import EnrollmentToken, Node, NodeSession, SpoolHead
from control_plane.nodes.ports import AttemptOwner, SessionBeat, SessionOpening
from shared.clock import Clock
from shared.digests import Digest
from shared.errors import EnrollmentTokenInvalidError, NotFoundError, PermissionDeniedError
from shared.ids import ExecutionId, NodeId, OrderId, TenantId
from shared.receipts import AttemptIdentity


class FakeNodeStore:
    """Implements `NodeStore`, `AttemptOwners` and `OrderLookup`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tokens: dict[str, EnrollmentToken] = {}
        self._nodes: dict[NodeId, Node] = {}
        self.audit: list[NewAuditEntry] = []
        self.attempts: dict[tuple[NodeId, ExecutionId, int], AttemptOwner] = {}
        self.orders: dict[tuple[NodeId, Digest], AttemptIdentity] = {}
        self.unsigned: dict[tuple[NodeId, OrderId], UnsignedOrder] = {}

    async def add_token(self, token: EnrollmentToken, *, audit: NewAuditEntry) -> None:
        self._tokens[token.token_hash] = token
        self.audit.append(audit)

    async def find_token(self, token_hash: str) -> EnrollmentToken | None:
        return self._tokens.get(token_hash)

    async def enroll(self, node: Node, *, token_hash: str, audit: NewAuditEntry) -> None:
        token = self._tokens.get(token_hash)
        if token is None or not token.is_usable(self._clock.now()):
            raise EnrollmentTokenInvalidError("the enrollment token was used or has expired")
        self._tokens[token_hash] = replace(token, used_at=self._clock.now(), node_id=node.node_id)
        self._nodes[node.node_id] = node
        self.audit.append(audit)

    async def get(self, tenant_id: TenantId, node_id: NodeId) -> Node:
        node = self._nodes.get(node_id)
        if node is None or node.tenant_id != tenant_id:
            raise NotFoundError(f"there is no node {node_id!r}")
        return node

    async def find(self, node_id: NodeId) -> Node | None:
        return self._nodes.get(node_id)

    async def list(self, tenant_id: TenantId, *, after: NodeId | None, limit: int) -> Sequence[Node]:
        found = sorted(
            (node for node in self._nodes.values() if node.tenant_id == tenant_id),
            key=lambda node: node.node_id,
            reverse=True,
        )
        return [node for node in found if after is None or node.node_id < after][:limit]

    async def save_state(self, node: Node, *, audit: NewAuditEntry) -> None:
        stored = self._nodes.get(node.node_id)
        if stored is None:
            raise NotFoundError(f"there is no node {node.node_id!r}")
        if stored.state not in node.state.may_follow:
            return
        self._nodes[node.node_id] = replace(stored, state=node.state)
        self.audit.append(audit)

    async def save_certificate(self, node_id: NodeId, serial: str, *, audit: NewAuditEntry) -> None:
        self._nodes[node_id] = replace(self._nodes[node_id], certificate_serial=serial)
        self.audit.append(audit)

    async def record(self, audit: NewAuditEntry) -> None:
        self.audit.append(audit)

    async def open_session(self, opening: SessionOpening, *, audit: NewAuditEntry) -> int:
        node = self._nodes.get(opening.node_id)
        if node is None:
            raise NotFoundError(f"there is no node {opening.node_id!r}")
        node.require_trusted()
        session_epoch = node.session.session_epoch + 1 if node.session is not None else 1
        session = NodeSession(
            session_epoch=session_epoch,
            boot_id=opening.boot_id,
            replica_id=opening.replica_id,
            engine=opening.engine,
            slots=opening.slots,
            sandbox_layers=opening.sandbox_layers,
            free_slots=0,
            started_at=self._clock.now(),
            last_heartbeat_at=self._clock.now(),
        )
        self._nodes[node.node_id] = replace(node, session=session)
        self.audit.append(audit)
        return session_epoch

    def accepted(self, node_id: NodeId, head: SpoolHead) -> None:
        """A receipt was recorded beside this store: the newest one is where the node's chain stands."""
        node = self._nodes[node_id]
        if head.sequence > node.last_accepted.sequence:
            self._nodes[node_id] = replace(node, last_accepted=head)

    async def close_sessions(self, closed: Sequence[tuple[NodeId, int]]) -> None:
        for node_id, session_epoch in closed:
            node = self._nodes[node_id]
            if node.session is not None and node.session.session_epoch == session_epoch:
                session = replace(node.session, replica_id="", free_slots=0)
                self._nodes[node_id] = replace(node, session=session)

    async def beat(self, beats: Sequence[SessionBeat]) -> Sequence[NodeId]:
        superseded = []
        for beat in beats:
            node = self._nodes[beat.node_id]
            if node.session is None or node.session.session_epoch != beat.session_epoch:
                superseded.append(beat.node_id)
                continue
            now = self._clock.now()
            session = replace(node.session, free_slots=beat.free_slots, last_heartbeat_at=now)
            self._nodes[beat.node_id] = replace(node, session=session, last_seen_at=now)
        return superseded

    async def owner_of_attempt(
        self, node_id: NodeId, execution_id: ExecutionId, fencing_token: int
    ) -> AttemptOwner:
        owner = self.attempts.get((node_id, execution_id, fencing_token))
        if owner is None:
            raise PermissionDeniedError(f"attempt {fencing_token} was never given to node {node_id}")
        return owner

    async def find_order(self, node_id: NodeId, order_digest: Digest) -> AttemptIdentity | None:
        return self.orders.get((node_id, order_digest))

    async def unsigned_orders(self, node_id: NodeId, order_ids: Sequence[OrderId]) -> Sequence[UnsignedOrder]:
        found = (self.unsigned.get((node_id, order_id)) for order_id in order_ids)
        return [order for order in found if order is not None]


class NothingCompiled:
    """Implements `CompiledContents`: every node compiles what it runs."""

    async def find(self, module_digest: object, target: object) -> None:
        return None

    async def pieces(self, compiled: object) -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""
