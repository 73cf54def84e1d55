"""A control-plane replica of the simulated system: the real dispatch and execution services in one process."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from agentfactory.v1 import nodes_pb2

from control_plane.agents.domain import ResolvedAgent
from control_plane.dispatch.options import DispatchOptions
from control_plane.dispatch.ports import SilentObserver
from control_plane.dispatch.service import Dispatch
from control_plane.executions.acceptor import Acceptor
from control_plane.executions.completions import Completions
from control_plane.executions.service import ExecutionService
from control_plane.nodes.transfers import NodeTransfers
from shared.errors import KeyUnavailableError
from shared.ids import NodeId, TenantId
from shared.signatures import Signature
from tests.fakes.answers import OneAgentDirectory, OpenGate, SaidPolicy
from tests.fakes.engines import FakeEngines
from tests.fakes.nodes import NothingCompiled
from tests.fixtures.keys import rsa_key, signer
from tests.simulation.chance import Chance
from tests.simulation.database import AGENT_ID, Database, StoreView
from tests.simulation.loop import Process, VirtualLoop, WorldClock
from tests.unit.shared.builders import INSTALLATION

SIGN_SECONDS = 0.0005
RECORD_LINGER = timedelta(milliseconds=250)
"""Longer than in earnest: it is a poll, and time without news costs most here."""


@dataclass
class Custody:
    """Where the order key is kept; away at times."""

    loop: VirtualLoop
    chance: Chance
    away_until: float = 0.0

    async def sign(self, data: bytes) -> Signature:
        """Implements `Signer`."""
        await asyncio.sleep(self.chance.latency(SIGN_SECONDS))
        if self.loop.time() < self.away_until:
            raise KeyUnavailableError("key custody is away")
        return await signer(rsa_key("order")).sign(data)


class Directory(OneAgentDirectory):
    """Implements `AgentDirectory`: one agent, whose id fits into an order."""

    async def resolve(self, tenant_id: TenantId, name: str) -> ResolvedAgent:
        return replace(await super().resolve(tenant_id, name), agent_id=AGENT_ID)


class Replica:
    """One replica over all its lives."""

    def __init__(
        self, name: str, *, loop: VirtualLoop, chance: Chance, database: Database, custody: Custody
    ) -> None:
        self.name = name
        self._loop = loop
        self._chance = chance.of(name)
        self._database = database
        self._custody = custody
        self._boots = 0
        database.listeners.append(self._heard)
        self.boot()

    def boot(self) -> None:
        """Start the process (again)."""
        self._boots += 1
        self.process = Process(self._loop, self.name)
        view = StoreView(self._database, self.process)
        clock, random = WorldClock(self._loop), self._chance.of(f"random {self._boots}")
        self.completions = Completions()
        self.dispatch = Dispatch(
            leases=view,
            kv=view,
            bodies=view,
            nodes=view,
            orders=view,
            keysets=view,
            engines=FakeEngines(),
            signer=self._custody,
            completions=self.completions,
            options=DispatchOptions(
                installation=INSTALLATION,
                epoch=1,
                replica_id=f"{self.name}.{self._boots}",
                record_linger=RECORD_LINGER,
            ),
            clock=clock,
            random=random,
            observer=SilentObserver(),
        )
        self._acceptor = Acceptor(store=view, placer=self.dispatch.placer)
        self.executions = ExecutionService(
            store=view,
            acceptor=self._acceptor,
            completions=self.completions,
            placer=self.dispatch.placer,
            agents=Directory(),
            policy=SaidPolicy(clock, random),
            clock=clock,
            random=random,
        )
        self.transfers = NodeTransfers(
            leases=view,
            executions=view,
            templates=view,
            compiled=NothingCompiled(),
            owners=view,
            gate=OpenGate(),
            clock=clock,
            random=random,
        )
        self._view = view
        self._main = self.process.spawn(self._run())

    def stop(self) -> None:
        """End as SIGTERM does: streams are ended, tasks are cancelled, `finally` runs."""
        self.process.soon(self._main.cancel)

    @property
    def has_stopped(self) -> bool:
        return self._main.done()

    def serve(
        self, requests: AsyncIterator[nodes_pb2.SessionRequest], *, node_id: NodeId
    ) -> AsyncGenerator[nodes_pb2.SessionResponse]:
        """Serve one session, as the servicer does."""
        return self.dispatch.serve(requests, node_id=node_id)

    async def _run(self) -> None:
        async with self.dispatch.running(), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._acceptor.run())
            tasks.create_task(self.completions.run(self._view))

    def _heard(self, channel: str, payloads: Sequence[str]) -> None:
        if not self.process.is_alive:
            return
        handlers: dict[str, Callable[[Sequence[str]], None]] = {
            "executions": self.completions.changed,
            "queue": self.dispatch.heard_queue,
            "cancels": self.dispatch.heard_cancels,
            "nodes": self.dispatch.heard_nodes,
        }
        self.process.soon(handlers[channel], payloads)
