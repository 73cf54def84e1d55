"""A node of the simulated system: the real node over all its boots, on a fake sandbox, a disk and a network."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry

from control_plane.executions.domain import AttemptRef as KnownAttempt
from control_plane.keys.ca import new_private_key, private_key_pem
from control_plane.nodes.domain import Node as KnownNode
from control_plane.nodes.transfers import OutputHeader
from data_plane.artifacts.ports import PreparedModule
from data_plane.carrier import OrderCarrier
from data_plane.identity import Certificate, NodeIdentity
from data_plane.metrics import NodeMetrics
from data_plane.node import Node
from data_plane.orders.admission import Admissions
from data_plane.orders.domain import AttemptRef
from data_plane.orders.freshness import Freshness
from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.ledger import OrderLedger
from data_plane.orders.policy import load_node_policy
from data_plane.orders.quarantine import Quarantine
from data_plane.orders.verifier import NodeFacts
from data_plane.receipts.domain import INLINE_BODY_BYTES, SpooledBody
from data_plane.receipts.issuer import ReceiptIssuer
from data_plane.runner import OrderRunner
from data_plane.sandbox.domain import RunRequest, RunResult, SandboxStats
from data_plane.session.host_calls import HostCallRelay
from data_plane.session.leases import Leases
from data_plane.session.outbox import Outbox
from data_plane.session.remote import UPLOAD_DEADLINE
from data_plane.session.service import SessionService
from data_plane.session.stream import SessionParts
from data_plane.taker import RunnerTaker
from shared.digests import Digest
from shared.errors import AgentFactoryError, UnavailableError
from shared.ids import BOOT, NODE, InstallationId, NodeId, TenantId, new_id
from shared.limits import Limits
from shared.manifest import Profile
from shared.orders import Order
from shared.outcomes import Outcome
from shared.paths import NodePaths
from tests.fakes.clock import START, FakeClock
from tests.fakes.host_calls import fake_parts
from tests.fakes.log import unchecked
from tests.fixtures.keys import ed25519_key, rsa_key
from tests.simulation.chance import Chance
from tests.simulation.disk import Disk
from tests.simulation.loop import Process, VirtualLoop, WorldClock
from tests.simulation.network import Connection, Network
from tests.simulation.replica import Replica
from tests.simulation.watch import Trace, Watch
from tests.unit.data_plane.builders import ENGINE
from tests.unit.shared.builders import INSTALLATION, a_manifest

SLOTS = 2
QUEUE = 4
_order: ContextVar[Order] = ContextVar("order")


@cache
def _metrics() -> NodeMetrics:
    """One for all: nobody reads them here, and they are dear to make."""
    return NodeMetrics(CollectorRegistry(), FakeClock())


@cache
def _tls_key() -> bytes:
    return private_key_pem(new_private_key())


def guest_input(milliseconds: int, name: str, *, is_large: bool) -> bytes:
    """What tells a guest how long to run and how much to say."""
    return f"{milliseconds} {'large' if is_large else 'small'} {name}".encode()


def guest_seconds(stdin: bytes) -> float:
    """How long the guest of this input runs."""
    return int(stdin.split()[0]) / 1000


def guest_output(stdin: bytes) -> bytes:
    """What the guest of this input says; large outputs do not travel with their receipts."""
    filling = b"." * (INLINE_BODY_BYTES + 1) if b" large " in stdin else b""
    return b"seen " + stdin + filling


@dataclass
class _Modules:
    """Implements `ModulePreparer`: every module is there in a moment."""

    chance: Chance

    async def prepare(self, order: Order) -> PreparedModule:
        _order.set(order)
        if self.chance.happens(0.3):
            await asyncio.sleep(self.chance.latency(0.01))
        return PreparedModule(manifest=a_manifest(), open_artifact=_no_artifact)

    def forget(self, module_digest: Digest, profile: Profile, *, vouched_by: str) -> None: ...

    def digests(self) -> tuple[Digest, ...]:
        """Of the artifact cache, as far as sessions look at it."""
        return ()


async def _no_artifact() -> int:
    raise AssertionError("the sandbox of the simulation loads nothing")


@dataclass
class _Sandbox:
    """Implements `Sandbox`: a guest is time that passes."""

    watch: Watch
    process: Process

    async def run(
        self,
        *,
        tenant_id: TenantId,
        module_digest: Digest,
        artifact: object,
        request: RunRequest,
        **_: object,
    ) -> RunResult:
        run = self.watch.guest_starts(_order.get(), self.process)
        try:
            await asyncio.sleep(guest_seconds(request.stdin))
        finally:
            self.watch.guest_ends(run)
        return RunResult(
            outcome=Outcome.SUCCEEDED, exit_code=0, stdout=guest_output(request.stdin), engine=ENGINE
        )

    def stats(self) -> SandboxStats:
        return SandboxStats(
            slots=SLOTS, busy=0, warm=0, spares=0, runs=0, warm_hits=0, spawned=0, crashed=0, discarded=0
        )


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


@dataclass
class _Link:
    """Implements what a node needs of its way to the control plane."""

    network: Network
    process: Process
    node_id: NodeId
    replicas: "cycle[Replica]"
    target: str = ""
    _replica: Replica | None = None

    async def open_session(self) -> Connection:
        self._replica = replica = next(self.replicas)
        self.target = replica.name
        return await self.network.connect(self.process, replica, self.node_id)

    async def close(self) -> None: ...

    async def fetch_input(self, attempt: object, size_bytes: int) -> bytes:
        raise UnavailableError("inputs of the simulation are small")

    async def upload_body(self, attempt: AttemptRef, body: SpooledBody, content: bytes) -> None:
        replica = self._replica
        assert replica is not None
        header = OutputHeader(
            attempt=KnownAttempt(
                execution_id=attempt.execution_id,
                attempt_number=attempt.attempt_number,
                fencing_token=attempt.fencing_token,
            ),
            commitment=body.commitment,
            salt=body.salt,
            size_bytes=body.size_bytes,
        )

        async def store() -> None:
            await replica.transfers.store_output(self.node_id, header, _pieces(content))

        deadline = UPLOAD_DEADLINE.total_seconds()
        await self.network.request(self.process.name, replica, store, deadline=deadline)

    async def renew_certificate(self, csr_der: bytes) -> tuple[bytes, ...]:
        raise UnavailableError("certificates of the simulation last")


@dataclass
class SimulatedNode:
    """One node over all its boots."""

    name: str
    folder: Path
    loop: VirtualLoop
    chance: Chance
    network: Network
    replicas: list[Replica]
    watch: Watch
    trace: Trace
    clock: WorldClock = field(init=False)
    boots: int = 0

    def __post_init__(self) -> None:
        self.clock = WorldClock(self.loop)
        self.chance = self.chance.of(self.name)
        self.node_id = new_id(NODE, self.clock, self.chance.of("identity"))
        self.key = ed25519_key(self.name)
        self.disk = Disk(
            self.folder, self.node_id, loop=self.loop, chance=self.chance.of("disk"), watch=self.watch
        )
        self.boot()

    def known(self) -> KnownNode:
        """The node as enrollment has recorded it."""
        return KnownNode(
            node_id=self.node_id,
            tenant_id=TenantId("default"),
            receipt_key_id=self.key.key_id,
            receipt_public_key=self.key.public.spki_der,
            certificate_serial="01",
            enrolled_at=START,
        )

    def boot(self) -> None:
        """Start the process (again), with what is on its disk."""
        self.boots += 1
        self.process = Process(self.loop, self.name)
        try:
            self.node = self._build(self.chance.of(f"boot {self.boots}"))
        except AgentFactoryError as error:
            self.watch.violate("a node can start again", f"{self.name}: {type(error).__name__}: {error}")
            raise
        self.main = self.process.spawn(self.node.run())

    def kill(self) -> None:
        """SIGKILL: the memory is gone, the disk is not."""
        self.process.kill()
        self.watch.process_died(self.process)
        self.disk.kill()
        self.network.process_died(self.process)

    def stop(self) -> None:
        """SIGTERM: drain and end."""
        self.process.soon(self.node.stop)

    @property
    def has_stopped(self) -> bool:
        return self.main.done()

    def _build(self, chance: Chance) -> Node:
        facts = NodeFacts(
            installation=InstallationId(INSTALLATION),
            node_id=self.node_id,
            boot_id=new_id(BOOT, self.clock, chance),
            engines={Profile.DEFAULT: ENGINE},
            ceilings=Limits(),
            max_order_life=timedelta(seconds=60),
            max_skew=timedelta(seconds=30),
        )
        root = rsa_key("root")
        keyset = NodeKeyset(
            root_keys={root.key_id: root.public}, installation=facts.installation, path=self.folder / "keyset"
        )
        keyset.load()
        freshness = Freshness(
            keyset=keyset,
            installation=facts.installation,
            max_staleness=timedelta(seconds=60),
            max_skew=facts.max_skew,
            clock=self.clock,
        )
        spool = self.disk.open_spool(self.process)
        leases, metrics, modules = Leases(), _metrics(), _Modules(chance.of("modules"))
        log = unchecked(keyset, metrics)
        issuer = ReceiptIssuer(spool=spool, key=self.key, facts=facts, random=chance.of("salts"))
        admissions = Admissions(slots=SLOTS, queue=QUEUE, leases=leases, spool=spool, ceilings=facts.ceilings)
        outbox = Outbox(spool=spool, clock=self.clock)
        replicas = list(self.replicas)
        first = chance.whole(0, len(replicas) - 1)
        link = _Link(self.network, self.process, self.node_id, cycle(replicas[first:] + replicas[:first]))
        sandbox = _Sandbox(self.watch, self.process)
        runner = OrderRunner(
            facts=facts,
            keyset=keyset,
            freshness=freshness,
            ledger=OrderLedger(max_order_life=facts.max_order_life, max_skew=facts.max_skew),
            leases=leases,
            admissions=admissions,
            carrier=OrderCarrier(
                facts=facts,
                leases=leases,
                log=log,
                modules=modules,
                inputs=link,
                sandbox=sandbox,
                host_calls=fake_parts(),
                quarantine=Quarantine(crashes=3, window=timedelta(minutes=5), duration=timedelta(minutes=10)),
                policy=load_node_policy(None, None),
                announcer=outbox,
                metrics=metrics,
                clock=self.clock,
            ),
            issuer=issuer,
            announcer=outbox,
            metrics=metrics,
            clock=self.clock,
        )
        parts = SessionParts(
            facts=facts,
            zone="",
            keyset=keyset,
            freshness=freshness,
            log=log,
            leases=leases,
            admissions=admissions,
            cache=cast("Any", modules),
            spool=spool,
            issuer=issuer,
            outbox=outbox,
            host_calls=HostCallRelay(wake=outbox.changed.set),
            orders=RunnerTaker(runner),
            outputs=link,
            metrics=metrics,
            clock=self.clock,
        )
        return Node(
            identity=self._identity(),
            paths=NodePaths(data_dir=self.folder),
            link=cast("Any", link),
            sessions=SessionService(connector=link, parts=parts, random=chance.of("backoff")),
            runner=runner,
            log=log,
            admissions=admissions,
            leases=leases,
            spool=spool,
            cache=cast("Any", modules),
            sandbox=sandbox,
            metrics=metrics,
            clock=self.clock,
            drain_timeout=timedelta(seconds=5),
        )

    def _identity(self) -> NodeIdentity:
        lasting = Certificate(
            chain_pem=b"", not_before=START - timedelta(days=1), not_after=START + timedelta(days=3650)
        )
        return NodeIdentity(
            node_id=self.node_id,
            installation=InstallationId(INSTALLATION),
            receipt_key=self.key,
            tls_key_pem=_tls_key(),
            certificate=lasting,
        )
