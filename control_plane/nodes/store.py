"""Nodes, enrollment tokens and sessions in Postgres. Every change commits together with its audit entry."""

import hmac
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import (
    Row,
    Select,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.arrays import is_one_of
from control_plane.database.notifications import Channel
from control_plane.database.tables import (
    attempts,
    enrollment_tokens,
    executions,
    nodes,
    order_batches,
    orders,
    sessions,
)
from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.executions.domain import UnsignedOrder
from control_plane.executions.encoding import capabilities_of_bytes, limits_of_bytes
from control_plane.nodes.domain import (
    EngineInfo,
    EnrollmentToken,
    LogSeen,
    Node,
    NodeDuty,
    NodeSession,
    NodeState,
    SandboxLayer,
    SpoolHead,
)
from control_plane.nodes.ports import AttemptOwner, SessionBeat, SessionOpening
from shared.digests import Digest
from shared.errors import EnrollmentTokenInvalidError, NotFoundError, PermissionDeniedError
from shared.ids import BootId, ExecutionId, KeyId, NodeId, OrderBatchId, OrderId, TenantId
from shared.merkle import split_hashes
from shared.receipts import MAX_RECORDING_BYTES, AttemptIdentity

SILENT_AFTER: Final = timedelta(seconds=10)
"""A session that no replica has noted for so long counts as closed."""

_OPEN_STATES: Final = (NodeState.ACTIVE, NodeState.DRAINING)

_BEAT: Final = text(
    """WITH beating AS MATERIALIZED (
        SELECT b.* FROM unnest(
            CAST(:node_ids AS text[]), CAST(:epochs AS bigint[]), CAST(:free_slots AS integer[]),
            CAST(:log_sizes AS bigint[]), CAST(:log_roots AS bytea[]), CAST(:log_problems AS text[]))
            AS b (node_id, session_epoch, free_slots, log_size, log_root, log_problem)
        JOIN sessions s ON s.node_id = b.node_id AND s.session_epoch = b.session_epoch
        ORDER BY s.node_id FOR NO KEY UPDATE OF s
    )
    UPDATE sessions s SET last_heartbeat_at = now(), free_slots = b.free_slots, log_size = b.log_size,
        log_root = b.log_root, log_problem = b.log_problem
    FROM beating b WHERE s.node_id = b.node_id AND s.session_epoch = b.session_epoch
    RETURNING s.node_id"""
)
"""Arrays, so that its text is the same for any number of sessions: it runs every second."""

_CLOSE: Final = text(
    """WITH closing AS MATERIALIZED (
        SELECT s.node_id FROM unnest(CAST(:node_ids AS text[]), CAST(:epochs AS bigint[]))
            AS c (node_id, session_epoch)
        JOIN sessions s ON s.node_id = c.node_id AND s.session_epoch = c.session_epoch
        ORDER BY s.node_id FOR NO KEY UPDATE OF s
    )
    UPDATE sessions s SET replica_id = '', free_slots = 0 FROM closing c WHERE s.node_id = c.node_id"""
)


class PostgresNodeStore:
    """Implements `NodeStore`, `AttemptOwners` and dispatch's `OrderLookup`."""

    def __init__(self, *, database: PostgresDatabase, audit: AuditLog) -> None:
        self._database = database
        self._audit = audit

    # --- tokens and enrollment

    async def add_token(self, token: EnrollmentToken, *, audit: NewAuditEntry) -> None:
        """See `NodeStore.add_token`."""
        async with self._database.transaction() as tx:
            await tx.connection.execute(
                insert(enrollment_tokens).values(
                    token_hash=token.token_hash,
                    tenant_id=token.tenant_id,
                    zone=token.zone,
                    created_by=token.created_by,
                    created_at=token.created_at,
                    expires_at=token.expires_at,
                    max_uses=token.max_uses,
                    duty=token.duty,
                )
            )
            await self._audit.append(tx, [audit])

    async def find_token(self, token_hash: str) -> EnrollmentToken | None:
        """See `NodeStore.find_token`."""
        async with self._database.reading() as connection:
            row = (
                await connection.execute(
                    select(enrollment_tokens).where(enrollment_tokens.c.token_hash == token_hash)
                )
            ).one_or_none()
        if row is None or not hmac.compare_digest(row.token_hash, token_hash):
            return None
        return EnrollmentToken(
            token_hash=row.token_hash,
            tenant_id=TenantId(row.tenant_id),
            zone=row.zone,
            created_by=row.created_by,
            created_at=row.created_at,
            expires_at=row.expires_at,
            used_at=row.used_at,
            node_id=NodeId(row.node_id) if row.node_id else None,
            max_uses=row.max_uses,
            uses=row.uses,
            duty=NodeDuty(row.duty),
        )

    async def enroll(self, node: Node, *, token_hash: str, audit: NewAuditEntry) -> None:
        """See `NodeStore.enroll`: whoever uses the token's row first gets it, by the database's time."""
        used_so_far = enrollment_tokens.c.uses
        last = case((used_so_far + 1 >= enrollment_tokens.c.max_uses, func.now()), else_=None)
        async with self._database.transaction() as tx:
            used = await tx.connection.execute(
                update(enrollment_tokens)
                .where(
                    enrollment_tokens.c.token_hash == token_hash,
                    enrollment_tokens.c.used_at.is_(None),
                    enrollment_tokens.c.expires_at > func.now(),
                    enrollment_tokens.c.uses < enrollment_tokens.c.max_uses,
                )
                .values(uses=used_so_far + 1, used_at=last, node_id=node.node_id)
                .returning(enrollment_tokens.c.token_hash)
            )
            if used.one_or_none() is None:
                raise EnrollmentTokenInvalidError("the enrollment token was used or has expired")
            await tx.connection.execute(
                insert(nodes).values(
                    node_id=node.node_id,
                    tenant_id=node.tenant_id,
                    state=node.state,
                    zone=node.zone,
                    receipt_key_id=node.receipt_key_id,
                    receipt_public_key=node.receipt_public_key,
                    certificate_serial=node.certificate_serial,
                    enrolled_at=node.enrolled_at,
                    duty=node.duty,
                )
            )
            await self._audit.append(tx, [audit])

    # --- nodes

    async def get(self, tenant_id: TenantId, node_id: NodeId) -> Node:
        """See `NodeStore.get`."""
        node = await self.find(node_id)
        if node is None or node.tenant_id != tenant_id:
            raise NotFoundError(f"there is no node {node_id!r}")
        return node

    async def find(self, node_id: NodeId) -> Node | None:
        """See `NodeStore.find`."""
        async with self._database.reading() as connection:
            row = (await connection.execute(_NODES.where(nodes.c.node_id == node_id))).one_or_none()
        return _node(row) if row is not None else None

    async def list(self, tenant_id: TenantId, *, after: NodeId | None, limit: int) -> Sequence[Node]:
        """See `NodeStore.list`."""
        query = _NODES.where(nodes.c.tenant_id == tenant_id)
        if after is not None:
            query = query.where(nodes.c.node_id < after)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.order_by(nodes.c.node_id.desc()).limit(limit))
            return [_node(row) for row in rows]

    async def save_state(self, node: Node, *, audit: NewAuditEntry) -> None:
        """See `NodeStore.save_state`."""
        evicted_at = func.now() if node.state is NodeState.EVICTED else None
        async with self._database.transaction() as tx:
            changed = await tx.connection.execute(
                update(nodes)
                .where(nodes.c.node_id == node.node_id, nodes.c.state.in_(node.state.may_follow))
                .values(state=node.state, evicted_at=evicted_at)
                .returning(nodes.c.node_id)
            )
            if changed.one_or_none() is None:
                await _require_node(tx.connection, node.node_id)
                return  # stricter before: it stays so, and nothing happened that would need an entry
            await self._audit.append(tx, [audit])
            tx.notify_after_commit(Channel.NODES, node.node_id)

    async def save_certificate(self, node_id: NodeId, serial: str, *, audit: NewAuditEntry) -> None:
        """See `NodeStore.save_certificate`."""
        async with self._database.transaction() as tx:
            await tx.connection.execute(
                update(nodes).where(nodes.c.node_id == node_id).values(certificate_serial=serial)
            )
            await self._audit.append(tx, [audit])

    async def record(self, audit: NewAuditEntry) -> None:
        """See `NodeStore.record`."""
        async with self._database.transaction() as tx:
            await self._audit.append(tx, [audit])

    # --- sessions

    async def open_session(self, opening: SessionOpening, *, audit: NewAuditEntry) -> int:
        """See `NodeStore.open_session`. The node's row is locked, so that sessions open one after another."""
        async with self._database.transaction() as tx:
            state = await tx.connection.scalar(
                select(nodes.c.state).where(nodes.c.node_id == opening.node_id).with_for_update()
            )
            if state not in _OPEN_STATES:
                node = await self.find(opening.node_id)
                if node is None:
                    raise NotFoundError(f"there is no node {opening.node_id!r}")
                node.require_trusted()
            fresh = {
                "boot_id": opening.boot_id,
                "replica_id": opening.replica_id,
                "engine_name": opening.engine.name,
                "engine_version": opening.engine.version,
                "engine_config_digest": opening.engine.config_digest,
                "slots": opening.slots,
                "sandbox_layers": [asdict(layer) for layer in opening.sandbox_layers],
                "free_slots": 0,
                "log_size": 0,
                "log_root": b"",
                "log_problem": "",
                "started_at": func.now(),
                "last_heartbeat_at": func.now(),
            }
            row = postgresql.insert(sessions).values(node_id=opening.node_id, session_epoch=1, **fresh)
            session_epoch = await tx.connection.scalar(
                row.on_conflict_do_update(
                    index_elements=[sessions.c.node_id],
                    set_={"session_epoch": sessions.c.session_epoch + 1, **fresh},
                ).returning(sessions.c.session_epoch)
            )
            await self._audit.append(tx, [audit])
            tx.notify_after_commit(Channel.NODES, opening.node_id)
        assert session_epoch is not None
        return int(session_epoch)

    async def close_sessions(self, closed: Sequence[tuple[NodeId, int]]) -> None:
        """See `NodeStore.close_sessions`. Rows are locked in key order, as in `beat`."""
        async with self._database.transaction() as tx:
            await tx.connection.execute(
                _CLOSE, {"node_ids": [node for node, _ in closed], "epochs": [epoch for _, epoch in closed]}
            )

    async def beat(self, beats: Sequence[SessionBeat]) -> Sequence[NodeId]:
        """See `NodeStore.beat`. Rows are locked in key order, as every group does (rule 3)."""
        ordered = sorted(beats, key=lambda beat: beat.node_id)
        async with self._database.transaction() as tx:
            beaten = await tx.connection.execute(
                _BEAT,
                {
                    "node_ids": [beat.node_id for beat in ordered],
                    "epochs": [beat.session_epoch for beat in ordered],
                    "free_slots": [beat.free_slots for beat in ordered],
                    "log_sizes": [beat.log.size for beat in ordered],
                    "log_roots": [beat.log.root for beat in ordered],
                    "log_problems": [beat.log.problem for beat in ordered],
                },
            )
            alive = {NodeId(row.node_id) for row in beaten}
            await tx.connection.execute(
                update(nodes).where(is_one_of(nodes.c.node_id, sorted(alive))).values(last_seen_at=func.now())
            )
        return [beat.node_id for beat in ordered if beat.node_id not in alive]

    # --- attempts

    async def owner_of_attempt(
        self, node_id: NodeId, execution_id: ExecutionId, fencing_token: int
    ) -> AttemptOwner:
        """See `AttemptOwners.owner_of_attempt`."""
        query = (
            select(attempts.c.tenant_id, executions.c.limits, executions.c.capabilities)
            .join(executions, executions.c.execution_id == attempts.c.execution_id)
            .where(
                attempts.c.execution_id == execution_id,
                attempts.c.fencing_token == fencing_token,
                attempts.c.node_id == node_id,
            )
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise PermissionDeniedError(
                f"attempt {fencing_token} of {execution_id!r} was never given to node {node_id}",
                hint="a node may hand in only what it was ordered to run",
            )
        limits = limits_of_bytes(row.limits)
        grants = capabilities_of_bytes(row.capabilities).host_call_grants
        return AttemptOwner(
            tenant_id=TenantId(row.tenant_id),
            output_bytes=limits.output_bytes,
            log_bytes=limits.log_bytes,
            recording_bytes=MAX_RECORDING_BYTES if grants else 0,
        )

    async def find_order(self, node_id: NodeId, order_digest: Digest) -> AttemptIdentity | None:
        """See `OrderLookup.find_order`."""
        found = select(
            attempts.c.order_id, attempts.c.execution_id, attempts.c.fencing_token, attempts.c.attempt_number
        ).where(attempts.c.node_id == node_id, attempts.c.order_digest == order_digest)
        # Nearly always the attempt lives: those are few and have an index of their own. Digests have none; it
        # would cost every order 5 us and 100 to 500 bytes of log, for what is asked after a mishap alone.
        alive = found.where(attempts.c.state.in_([literal_column("'leased'"), literal_column("'running'")]))
        async with self._database.reading() as connection:
            row = (await connection.execute(alive)).one_or_none()
            if row is None:
                row = (await connection.execute(found)).one_or_none()
        if row is None:
            return None
        return AttemptIdentity(
            order_id=OrderId(row.order_id),
            execution_id=ExecutionId(row.execution_id),
            attempt_number=row.attempt_number,
            fencing_token=row.fencing_token,
        )

    async def unsigned_orders(self, node_id: NodeId, order_ids: Sequence[OrderId]) -> Sequence[UnsignedOrder]:
        """See `OrderLookup.unsigned_orders`."""
        unsigned = (
            select(orders.c.order_id, orders.c.content)
            .add_columns(orders.c.batch_id, orders.c.leaf_index, orders.c.proof)
            .where(orders.c.node_id == node_id, orders.c.order_id.in_(order_ids))
            .where(orders.c.batch_id.is_not(None))  # lost before schema 0002
            .where(~select(true()).where(order_batches.c.batch_id == orders.c.batch_id).exists())
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(unsigned)).all()
        return [
            UnsignedOrder(
                order_id=OrderId(row.order_id),
                content=row.content,
                batch_id=OrderBatchId(row.batch_id),
                leaf_index=row.leaf_index,
                path=split_hashes(row.proof),
            )
            for row in rows
        ]


_NODES: Final[Select[Any]] = select(
    nodes,
    sessions.c.session_epoch,
    sessions.c.boot_id,
    # A replica that died closed nothing: silence says it.
    case((sessions.c.last_heartbeat_at > func.now() - SILENT_AFTER, sessions.c.replica_id), else_="").label(
        "replica_id"
    ),
    sessions.c.engine_name,
    sessions.c.engine_version,
    sessions.c.engine_config_digest,
    sessions.c.slots,
    sessions.c.sandbox_layers,
    sessions.c.free_slots,
    sessions.c.started_at,
    sessions.c.last_heartbeat_at,
    sessions.c.log_size,
    sessions.c.log_root,
    sessions.c.log_problem,
).select_from(nodes.outerjoin(sessions, sessions.c.node_id == nodes.c.node_id))


async def _require_node(connection: AsyncConnection, node_id: NodeId) -> None:
    if await connection.scalar(select(true()).where(nodes.c.node_id == bindparam("id", node_id))) is None:
        raise NotFoundError(f"there is no node {node_id!r}")


def _node(row: Row[Any]) -> Node:
    return Node(
        node_id=NodeId(row.node_id),
        tenant_id=TenantId(row.tenant_id),
        receipt_key_id=KeyId(row.receipt_key_id),
        receipt_public_key=row.receipt_public_key,
        certificate_serial=row.certificate_serial,
        enrolled_at=row.enrolled_at,
        state=NodeState(row.state),
        zone=row.zone,
        duty=NodeDuty(row.duty),
        last_accepted=SpoolHead(sequence=row.last_sequence, hash=row.last_hash),
        last_seen_at=row.last_seen_at,
        session=_session(row) if row.session_epoch is not None else None,
    )


def _session(row: Row[Any]) -> NodeSession:
    return NodeSession(
        session_epoch=row.session_epoch,
        boot_id=BootId(row.boot_id),
        replica_id=row.replica_id,
        engine=EngineInfo(
            name=row.engine_name,
            version=row.engine_version,
            config_digest=row.engine_config_digest,
        ),
        slots=row.slots,
        sandbox_layers=tuple(SandboxLayer(**layer) for layer in row.sandbox_layers),
        free_slots=row.free_slots,
        started_at=row.started_at,
        last_heartbeat_at=row.last_heartbeat_at,
        log=LogSeen(size=row.log_size, root=row.log_root, problem=row.log_problem),
    )
