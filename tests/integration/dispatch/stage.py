"""Dispatch on a real Postgres behind a real server, with as little around it as there can be."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import asyncpg
from agentfactory.v1 import nodes_pb2_grpc

from control_plane.audit.store import PostgresAuditStore
from control_plane.audit.throttle import RefusalLog
from control_plane.database.engine import create_engine
from control_plane.database.notifications import Channel, Notifications, PostgresNotifier, Subscriptions
from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.dispatch.ports import SilentObserver
from control_plane.dispatch.service import Dispatch
from control_plane.engines.store import PostgresEngineDenialStore
from control_plane.executions.domain import (
    Accepted,
    IdempotencyKey,
    NewExecution,
)
from control_plane.executions.lease_store import PostgresLeaseStore
from control_plane.executions.lifecycle import Execution
from control_plane.executions.store import PostgresExecutionStore
from control_plane.kv.store import PostgresKvStore
from control_plane.log.node_proofs import NodeProofs
from control_plane.log.service import LogService
from control_plane.log.store import PostgresLogStore
from control_plane.nodes.domain import Node
from control_plane.nodes.service import NodeService
from control_plane.nodes.servicer import NodeServicer
from control_plane.nodes.store import PostgresNodeStore
from control_plane.nodes.transfers import NodeTransfers
from control_plane.policy.store import PostgresDecisionLog
from shared.checkpoints import log_origin
from shared.clock import SystemClock, SystemRandom
from shared.digests import sha256_digest
from shared.errors import NotFoundError
from shared.ids import AGENT, AUDIT_ENTRY, ExecutionId, KeyId, NodeId, new_id
from shared.signatures import PublicKey
from tests.builders.executions import allowed
from tests.fakes.answers import OpenGate
from tests.fakes.log import LogKey, SilentLog
from tests.fakes.nodes import NothingCompiled
from tests.fixtures import dispatch as build
from tests.fixtures.identities import INSTALLATION, Identities
from tests.fixtures.keys import ed25519_key, rsa_key, signer, trusting
from tests.fixtures.scripted_node import ScriptedNode

WAIT_SECONDS = 30.0
CLOCK, RANDOM = SystemClock(), SystemRandom()
MODULE = b"\0asm module"
ENVELOPE = b"envelope"
AGENT_ID = new_id(AGENT, CLOCK, RANDOM)


class Waiting:
    """Callers that wait for executions."""

    def __init__(self) -> None:
        self._ended: dict[ExecutionId, asyncio.Future[Execution]] = {}

    def complete(self, execution: Execution) -> None:
        future = self._future(execution.execution_id)
        if not future.done():
            future.set_result(execution)

    async def ended(self, execution_id: ExecutionId) -> Execution:
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._future(execution_id)

    def _future(self, execution_id: ExecutionId) -> "asyncio.Future[Execution]":
        return self._ended.setdefault(execution_id, asyncio.get_running_loop().create_future())


class OneKeyset:
    def __init__(self) -> None:
        self.version = 1

    async def newest(self) -> tuple[int, bytes]:
        return self.version, b"keyset %d" % self.version

    async def freshness(self) -> bytes:
        return b""

    async def order_keys(self, at: datetime) -> dict[KeyId, PublicKey]:
        return trusting(rsa_key("orders"))


class OneTemplate:
    async def envelope(self, tenant_id: str, template_digest: str) -> bytes:
        return ENVELOPE

    async def module(self, module_digest: str, *, offset_bytes: int, max_bytes: int) -> bytes:
        if module_digest != build.MODULE_DIGEST:
            raise NotFoundError("no such module")
        return MODULE[offset_bytes : offset_bytes + max_bytes]


@dataclass
class Replica:
    """One control plane, reduced to dispatch."""

    database: PostgresDatabase
    nodes: PostgresNodeStore
    leases: PostgresLeaseStore
    executions: PostgresExecutionStore
    dispatch: Dispatch
    service: NodeService
    identities: Identities
    keysets: OneKeyset
    target: str = ""
    waiting: Waiting = field(default_factory=Waiting)

    async def add_node(self) -> Node:
        """Enroll a node by the back door."""
        node = build.node()
        async with self.database.transaction() as tx:
            await tx.connection.exec_driver_sql(
                "INSERT INTO nodes (node_id, tenant_id, receipt_key_id, receipt_public_key, certificate_serial)"
                " VALUES ($1, 'default', $2, $3, '01')",
                (node.node_id, node.receipt_key_id, node.receipt_public_key),
            )
        return node

    def client(self, node_id: NodeId, **changes: Any) -> ScriptedNode:
        return ScriptedNode(self.identities.node_channel(self.target, node_id), node_id, **changes)

    async def ready_node(self, **hello: Any) -> ScriptedNode:
        """A new node with an open session that offers two slots."""
        node = self.client((await self.add_node()).node_id)
        await node.connect(**hello)
        await node.beat()
        await self.heard(node)
        await self.until(lambda: self.dispatch.placer.queue_is_empty)
        return node

    async def heard(self, node: ScriptedNode) -> None:
        """Wait until the newest heartbeat of a node counts: what it offers decides where orders go."""

        def counts() -> bool:
            session = self.dispatch._fleet.get(node.node_id)
            return session is not None and session.heartbeat_number >= node.heartbeats

        await self.until(counts)

    async def submit(self, *works: NewExecution) -> list[Accepted]:
        """Accept executions as the execution service does: place, store, commit or release."""
        placements = self.dispatch.placer.place(works)
        answers = await self.executions.accept(works, placements)
        sent = [
            (placement, work)
            for placement, work, answer in zip(placements, works, answers, strict=True)
            if placement is not None and answer.placed
        ]
        self.dispatch.placer.commit([one for one, _ in sent], [work for _, work in sent])
        unplaced = [
            placement
            for placement, answer in zip(placements, answers, strict=True)
            if placement is not None and not answer.placed
        ]
        self.dispatch.placer.release(unplaced)
        if any(not answer.placed for answer in answers):
            self.dispatch.placer.wake()
        return list(answers)

    async def until(self, holds: Any) -> None:
        """Wait until a condition holds; it is asked every few milliseconds, within a bound."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                answer = holds()
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer:
                    return
                await asyncio.sleep(0.005)

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        async with self.database.driver() as connection:
            return list(await connection.fetch(query, *arguments))

    async def get(self, execution_id: ExecutionId) -> Execution:
        return await self.executions.get(build.TENANT, execution_id)


def work(**changes: Any) -> NewExecution:
    """One request to run the seeded agent."""
    run = build.run_spec(
        agent_id=AGENT_ID,
        clock_start_at=CLOCK.now(),
        run_deadline_at=CLOCK.now() + timedelta(minutes=5),
        **changes,
    )
    return NewExecution(
        run=run,
        agent_revision=1,
        idempotency=IdempotencyKey(
            method="Execute",
            request_id=run.execution_id,
            hmac_key=b"k" * 32,
            fingerprint=b"f" * 32,
        ),
        decision=allowed(run, at=CLOCK.now()),
        audit_entry_id=new_id(AUDIT_ENTRY, CLOCK, RANDOM),
        created_at=CLOCK.now(),
    )


async def seed(owner_url: str) -> None:
    """One tenant, template and agent."""
    connection = await asyncpg.connect(owner_url, timeout=10)
    try:
        await connection.execute("INSERT INTO tenants (tenant_id) VALUES ('default') ON CONFLICT DO NOTHING")
        await connection.execute(
            "INSERT INTO templates (template_id, tenant_id, name) VALUES ('tpl_1', 'default', 'redact')"
        )
        await connection.execute(
            "INSERT INTO artifacts (module_digest, module, size_bytes) VALUES ($1, $2, $3)",
            build.MODULE_DIGEST,
            MODULE,
            len(MODULE),
        )
        await connection.execute(
            "INSERT INTO template_versions (template_version_id, tenant_id, template_id, name, version, digest,"
            " module_digest, publisher_key_id, manifest, envelope, published_by)"
            " VALUES ('tpv_1', 'default', 'tpl_1', 'redact', '1.0.0', $1, $2, 'k', '', $3, 'me')",
            sha256_digest(b"template"),
            build.MODULE_DIGEST,
            ENVELOPE,
        )
        await connection.execute(
            "INSERT INTO agents (agent_id, tenant_id, name, template_digest, template_name, template_version,"
            " parameters) VALUES ($1, 'default', 'redact', $2, 'redact', '1.0.0', '{}')",
            AGENT_ID,
            sha256_digest(b"template"),
        )
    finally:
        await connection.close()


@asynccontextmanager
async def replica(database_url: str, *, name: str = "replica-1", **options: Any) -> AsyncIterator[Replica]:
    """Run one replica."""
    engine = create_engine(database_url, application=name)
    notifier_database = PostgresDatabase(engine, notifier=_Silent())
    subscriptions = Subscriptions(replica=RANDOM.token_bytes(8).hex())
    notifier = PostgresNotifier(notifier_database.held(), subscriptions)
    database = PostgresDatabase(engine, notifier=notifier)
    audit = PostgresAuditStore(database)
    executions = PostgresExecutionStore(
        database, audit=audit, decisions=PostgresDecisionLog(), clock=CLOCK, random=RANDOM
    )
    leases = PostgresLeaseStore(database, executions=executions, audit=audit, clock=CLOCK, random=RANDOM)
    kv = PostgresKvStore(database)
    nodes = PostgresNodeStore(database=database, audit=audit)
    waiting, keysets, identities = Waiting(), OneKeyset(), Identities.create()
    dispatch = Dispatch(
        leases=leases,
        kv=kv,
        bodies=executions,
        nodes=nodes,
        orders=nodes,
        keysets=keysets,
        engines=PostgresEngineDenialStore(database),
        signer=signer(rsa_key("orders")),
        completions=waiting,
        options=replace(build.options(), replica_id=name, **options),
        clock=CLOCK,
        random=RANDOM,
        observer=SilentObserver(),
    )
    service = NodeService(
        nodes=nodes,
        leases=leases,
        authority=identities.authority,
        sessions=dispatch,
        installation=INSTALLATION,
        default_tenant=build.TENANT,
        refusals=RefusalLog(audit=audit, clock=CLOCK, random=RANDOM),
        gate=OpenGate(),
        clock=CLOCK,
        random=RANDOM,
    )
    transfers = NodeTransfers(
        leases=leases,
        executions=executions,
        templates=OneTemplate(),
        compiled=NothingCompiled(),
        owners=nodes,
        gate=OpenGate(),
        clock=CLOCK,
        random=RANDOM,
    )
    log = LogService(
        database=database.of_every_tenant(),
        store=PostgresLogStore(),
        origin=log_origin(INSTALLATION, 1),
        keys=LogKey(key=ed25519_key("log")),
        observer=SilentLog(),
        include_within=timedelta(seconds=WAIT_SECONDS),
        random=RANDOM,
    )
    servicer = NodeServicer(
        nodes=service,
        transfers=transfers,
        sessions=dispatch,
        proofs=NodeProofs(log=log, leases=leases),
        installation=INSTALLATION,
    )
    made = Replica(
        database=database,
        nodes=nodes,
        leases=leases,
        executions=executions,
        dispatch=dispatch,
        service=service,
        identities=identities,
        keysets=keysets,
        waiting=waiting,
    )
    notifications = Notifications(engine, subscriptions)
    with (
        subscriptions.subscribed(Channel.QUEUE, dispatch.heard_queue),
        subscriptions.subscribed(Channel.CANCELS, dispatch.heard_cancels),
        subscriptions.subscribed(Channel.NODES, dispatch.heard_nodes),
        subscriptions.subscribed(Channel.KEYSETS, dispatch.heard_keysets),
    ):
        tasks = [asyncio.create_task(notifications.run()), asyncio.create_task(notifier.run())]
        try:
            async with (
                identities.server(
                    lambda server: nodes_pb2_grpc.add_NodeServiceServicer_to_server(servicer, server)
                ) as target,
                dispatch.running(),
            ):
                made.target = target
                yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await leases.close()
            await kv.close()
            await executions.close()
            await database.close()


class _Silent:
    def notify(self, channel: str, payloads: Any = ()) -> None: ...

    def notify_others(self, channel: str, payloads: Any = ()) -> None: ...
