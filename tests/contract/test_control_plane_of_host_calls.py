"""What every `KvStore` and `UnsafeIntents` of a node promises: the fake, and a session with a real control plane."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import pytest

from control_plane.executions.encoding import capabilities_bytes
from data_plane.host_calls.ports import KvStore, UnsafeIntents
from data_plane.orders.domain import AttemptRef
from data_plane.session.host_calls import HostCallRelay
from shared.errors import HostCallRefusedError
from shared.ids import ExecutionId
from shared.manifest import Capabilities
from shared.order_codec import decode_order
from tests.fakes.host_calls import FakeControlPlane
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.scripted_node import ScriptedNode
from tests.integration.dispatch.stage import AGENT_ID, Replica, replica, seed, work

BOUND_SECONDS = 30


class World(Protocol):
    """One attempt that runs, and the control plane behind it."""

    attempt: AttemptRef
    kv: KvStore
    intents: UnsafeIntents

    async def keep(self, key: str, value: bytes) -> None: ...

    async def end(self) -> None:
        """The attempt loses its lease."""

    async def declared(self) -> int:
        """How many attempts are on record for unsafe calls."""


class FakeWorld:
    attempt = AttemptRef(execution_id=ExecutionId("exe_1"), attempt_number=1, fencing_token=1)

    def __init__(self) -> None:
        self.fake = FakeControlPlane()
        self.kv = self.intents = self.fake

    async def keep(self, key: str, value: bytes) -> None:
        self.fake.values[key] = value

    async def end(self) -> None:
        self.fake.ended.add(self.attempt)

    async def declared(self) -> int:
        return len(set(self.fake.declared))


@dataclass
class SessionWorld:
    """The node's side of a session, without the node: questions up, answers down."""

    one: Replica
    attempt: AttemptRef
    relay: HostCallRelay
    questions: asyncio.Event
    node: ScriptedNode

    @property
    def kv(self) -> HostCallRelay:
        return self.relay

    intents = kv

    async def keep(self, key: str, value: bytes) -> None:
        await self.one.fetch(
            "INSERT INTO kv_entries (tenant_id, agent_id, key, value, size_bytes, written_by)"
            " VALUES ('default', $1, $2, $3, 1, 'exe_0')",
            AGENT_ID,
            key,
            value,
        )

    async def end(self) -> None:
        await self.one.fetch("UPDATE attempts SET state = 'finished'")

    async def declared(self) -> int:
        rows = await self.one.fetch("SELECT count(*) AS n FROM attempts WHERE unsafe_call_at IS NOT NULL")
        return int(rows[0]["n"])

    async def write(self) -> None:
        while True:
            self.questions.clear()
            for question in self.relay.next_questions():
                await self.node.send(host_call=question.host_call)
            await self.questions.wait()

    async def read(self) -> None:
        while (message := await self.node._read()) is not None:
            if message.WhichOneof("message") == "host_reply":
                self.relay.answered(message.host_reply)


@asynccontextmanager
async def session_world(server: PostgresServer, name: str) -> AsyncIterator[SessionWorld]:
    await seed(server.url(name))
    async with replica(server.url(name, user="af_service")) as one:
        node = await one.ready_node(accepts=["agentfactory.order.v2"])
        await one.submit(work(capabilities=capabilities_bytes(Capabilities(kv=True))))
        order = decode_order((await node.next_order()).order)
        questions = asyncio.Event()
        world = SessionWorld(
            one=one,
            attempt=AttemptRef(
                execution_id=order.execution_id,
                attempt_number=order.attempt_number,
                fencing_token=order.fencing_token,
            ),
            relay=HostCallRelay(wake=questions.set),
            questions=questions,
            node=node,
        )
        pumps = [asyncio.create_task(world.write()), asyncio.create_task(world.read())]
        try:
            async with asyncio.timeout(BOUND_SECONDS):
                yield world
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


@pytest.fixture(params=["fake", "session"])
def backend(request: pytest.FixtureRequest) -> Iterator[tuple[PostgresServer, str] | None]:
    if request.param == "fake":
        yield None
        return
    server: PostgresServer = request.getfixturevalue("postgres_18")
    name = server.new_database()
    yield server, name
    server.drop_database(name)


@pytest.fixture
async def world(backend: tuple[PostgresServer, str] | None) -> AsyncIterator[World]:
    if backend is None:
        yield FakeWorld()
        return
    async with session_world(*backend) as opened:
        yield opened


async def test_a_committed_value_is_read_and_a_missing_one_is_none(world):
    await world.keep("a", b"1")
    await world.keep("empty", b"")
    found = await asyncio.gather(*(world.kv.get(world.attempt, key) for key in ("a", "b", "empty")))
    assert found == [b"1", None, b""]


async def test_declaring_returns_once_it_is_on_record_and_a_repeat_changes_nothing(world):
    assert await world.declared() == 0
    await world.intents.declare(world.attempt)
    assert await world.declared() == 1
    await world.intents.declare(world.attempt)
    assert await world.declared() == 1


async def test_rule_6_an_attempt_without_its_lease_gets_neither(world):
    await world.keep("a", b"1")
    await world.end()
    for ask in (world.kv.get(world.attempt, "a"), world.intents.declare(world.attempt)):
        with pytest.raises(HostCallRefusedError) as refused:
            await ask
        assert refused.value.refusal == "LEASE_NOT_HELD"
    assert await world.declared() == 0
