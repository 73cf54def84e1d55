"""Who gets a session, and when a stream ends by itself. On fakes; the same over a wire is in integration."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from agentfactory.v1 import nodes_pb2

from control_plane.dispatch.endpoint import SessionEndpoint
from control_plane.dispatch.host_calls import HostCallDesk
from control_plane.dispatch.leases import LeaseDesk
from control_plane.dispatch.opening import OPENINGS_AT_ONCE, SessionOpener
from control_plane.dispatch.ports import SilentObserver
from control_plane.dispatch.receipts import ReceiptIntake
from control_plane.dispatch.returned import ReturnedSignatures
from control_plane.dispatch.session import LiveSession
from control_plane.engines.domain import EngineDenial, EngineRule
from control_plane.nodes.domain import Node, NodeState, SpoolHead
from shared.errors import (
    ClockSkewError,
    DeadlineExceededError,
    EngineDeniedError,
    InvalidInputError,
    NodeEvictedError,
    NodeQuarantinedError,
    PermissionDeniedError,
    ReceiptConflictError,
    ResourceExhaustedError,
    SignatureInvalidError,
    UnavailableError,
    UnsupportedVersionError,
)
from tests.fakes.clock import START, FakeRandom
from tests.fakes.engines import FakeEngines
from tests.fakes.executions import FakeExecutionStore
from tests.fakes.nodes import FakeNodeStore
from tests.fixtures import dispatch as build
from tests.fixtures.keys import ed25519_key
from tests.unit.control_plane.dispatch.conftest import Parts, newcomer

MICROSECOND = timedelta(microseconds=1)
SKEW = timedelta(seconds=30)


class OneKeyset:
    async def newest(self) -> tuple[int, bytes]:
        return 1, b"keyset"

    async def freshness(self) -> bytes:
        return b""

    async def order_keys(self, at: Any) -> dict[Any, Any]:
        return {}


class NobodyWaits:
    def complete(self, execution: Any) -> None: ...


class NothingUploaded:
    async def find_output(self, execution_id: Any, commitment: Any) -> None:
        return None


@dataclass
class Door:
    """The opener and the endpoint of one replica, for one node."""

    parts: Parts
    nodes: FakeNodeStore
    node: Node
    opener: SessionOpener
    endpoint: SessionEndpoint
    engines: FakeEngines

    def hello(self, **changes: Any) -> nodes_pb2.Hello:
        boot = build.boot_id()
        hello = nodes_pb2.Hello(
            node_id=self.node.node_id,
            boot_id=boot,
            accepts=["agentfactory.order.v1"],
            engine=nodes_pb2.EngineInfo(name="wasmer", version="7.4.2", config_digest=build.CONFIG_DIGEST),
            slots=2,
            spool_head=build.signed_head(self.node.node_id, boot, SpoolHead(), ed25519_key("receipts")),
        )
        hello.now.FromDatetime(START)
        for name, value in changes.items():
            field = getattr(hello, name)
            if name == "now":
                field.FromDatetime(value)
            elif name == "spool_head":
                key = ed25519_key("receipts")
                field.CopyFrom(build.signed_head(self.node.node_id, hello.boot_id, value, key))
            elif name == "accepts":
                del field[:]
                field.extend(value)
            else:
                setattr(hello, name, value)
        return hello

    async def open(self, hello: nodes_pb2.Hello | None = None) -> LiveSession:
        return await self.opener.open(
            requests(nodes_pb2.SessionRequest(hello=hello or self.hello())), node_id=self.node.node_id
        )

    def last_entry(self) -> tuple[str, str]:
        return (self.nodes.audit[-1].action, self.nodes.audit[-1].result)


async def requests(*messages: nodes_pb2.SessionRequest) -> AsyncIterator[nodes_pb2.SessionRequest]:
    for message in messages:
        yield message


@pytest.fixture
def door(parts: Parts) -> Door:
    nodes, node = FakeNodeStore(parts.clock), build.node()
    nodes._nodes[node.node_id] = node
    engines = FakeEngines()
    common = {
        "clock": parts.clock,
        "random": FakeRandom("door"),
        "observer": SilentObserver(),
        "nodes": nodes,
    }
    opener = SessionOpener(
        fleet=parts.fleet,
        leases=parts.leases,
        keysets=OneKeyset(),
        engines=engines,
        options=build.options(),
        **common,
    )
    dispatcher = parts.dispatcher
    endpoint = SessionEndpoint(
        opener=opener,
        fleet=parts.fleet,
        dispatcher=dispatcher,
        desk=LeaseDesk(
            dispatcher=dispatcher,
            leases=parts.leases,
            options=build.options(),
            clock=parts.clock,
            background=parts.background,
        ),
        host_calls=HostCallDesk(
            kv=FakeExecutionStore(parts.clock), leases=parts.leases, background=parts.background
        ),
        receipts=ReceiptIntake(
            dispatcher=dispatcher,
            batches=parts.batches,
            returned=ReturnedSignatures(
                orders=nodes,
                keysets=OneKeyset(),
                options=build.options(),
                clock=parts.clock,
                observer=SilentObserver(),
            ),
            finish=_finish_one(parts),
            protect=parts.leases.protect_results,
            bodies=NothingUploaded(),
            orders=nodes,
            completions=NobodyWaits(),
            background=parts.background,
            **common,
        ),
        options=build.options(),
        background=parts.background,
        **common,
    )
    return Door(parts=parts, nodes=nodes, node=node, opener=opener, endpoint=endpoint, engines=engines)


def _finish_one(parts: Parts) -> Any:
    async def finish(result: Any) -> Any:
        return (await parts.leases.finish([result]))[0]

    return finish


# --- rule 9


@pytest.mark.parametrize("skew", [SKEW, -SKEW, timedelta(0)])
async def test_rule_9_a_clock_that_is_30_s_off_is_let_in(door: Door, skew: timedelta):
    session = await door.open(door.hello(now=START + skew))
    assert session.session_epoch == 1


@pytest.mark.parametrize("skew", [SKEW + MICROSECOND, -SKEW - MICROSECOND])
async def test_rule_9_a_clock_that_is_more_than_30_s_off_is_refused_on_record(door: Door, skew: timedelta):
    with pytest.raises(ClockSkewError, match="check 4"):
        await door.open(door.hello(now=START + skew))
    assert door.last_entry() == ("node.session_refused", "CLOCK_SKEW")


# --- rule 11


async def test_rule_11_no_common_order_type_no_session(door: Door):
    with pytest.raises(UnsupportedVersionError, match="check 5"):
        await door.open(door.hello(accepts=["agentfactory.order.v4"]))
    assert door.last_entry() == ("node.session_refused", "UNSUPPORTED_VERSION")


# --- engines


@pytest.mark.parametrize(
    "rule",
    [
        EngineRule(name="wasmer"),
        EngineRule(name="wasmer", version="7.4.2"),
        EngineRule(name="wasmer", version="7.4.2", config_digest=build.CONFIG_DIGEST),
    ],
    ids=["name", "version", "configuration"],
)
async def test_a_node_of_a_denied_engine_gets_no_session(door: Door, rule: EngineRule):
    door.engines.denied = [EngineDenial(rule=rule, reason="CVE", denied_by="ann", denied_at=START)]
    with pytest.raises(EngineDeniedError, match="check 5"):
        await door.open()
    assert door.last_entry() == ("node.session_refused", "ENGINE_DENIED")


@pytest.mark.parametrize(
    "rule",
    [
        EngineRule(name="wasm"),
        EngineRule(name="wasmer", version="7.4.20"),
        EngineRule(name="wasmer", config_digest="sha256:" + "0" * 64),
    ],
    ids=["name", "version", "configuration"],
)
async def test_a_node_of_another_engine_gets_one(door: Door, rule: EngineRule):
    door.engines.denied = [EngineDenial(rule=rule, reason="CVE", denied_by="ann", denied_at=START)]
    assert (await door.open()).session_epoch == 1


# --- rule 5


async def test_rule_5_a_longer_chain_than_the_accepted_one_goes_on(door: Door):
    accepted = SpoolHead(sequence=3, hash=b"a" * 32)
    door.nodes._nodes[door.node.node_id] = replace(door.node, last_accepted=accepted)
    session = await door.open(door.hello(spool_head=SpoolHead(sequence=5, hash=b"b" * 32)))
    [outgoing] = session.outbox.take_unread()
    welcome = outgoing.message.welcome
    assert (welcome.last_accepted.sequence, welcome.last_accepted.hash) == (3, b"a" * 32)


async def test_rule_5_a_spool_behind_the_accepted_receipts_ends_the_identity_on_record(door: Door):
    accepted = SpoolHead(sequence=3, hash=b"a" * 32)
    door.nodes._nodes[door.node.node_id] = replace(door.node, last_accepted=accepted)
    with pytest.raises(NodeEvictedError, match="check 7"):
        await door.open(door.hello(spool_head=SpoolHead(sequence=2, hash=b"b" * 32)))
    assert (await door.nodes.find(door.node.node_id)).state is NodeState.EVICTED
    assert door.last_entry() == ("node.session_refused", "NODE_EVICTED")


async def test_rule_5_another_receipt_at_the_accepted_sequence_quarantines(door: Door):
    accepted = SpoolHead(sequence=3, hash=b"a" * 32)
    door.nodes._nodes[door.node.node_id] = replace(door.node, last_accepted=accepted)
    with pytest.raises(ReceiptConflictError):
        await door.open(door.hello(spool_head=SpoolHead(sequence=3, hash=b"b" * 32)))
    assert (await door.nodes.find(door.node.node_id)).state is NodeState.QUARANTINED


async def test_an_unsigned_head_ends_no_identity(door: Door):
    accepted = SpoolHead(sequence=3, hash=b"a" * 32)
    door.nodes._nodes[door.node.node_id] = replace(door.node, last_accepted=accepted)
    hello = door.hello()
    hello.ClearField("spool_head")
    with pytest.raises(SignatureInvalidError):
        await door.open(hello)
    assert (await door.nodes.find(door.node.node_id)).state is NodeState.ACTIVE


# --- who


@pytest.mark.parametrize(
    ("state", "error"),
    [(NodeState.QUARANTINED, NodeQuarantinedError), (NodeState.EVICTED, NodeEvictedError)],
)
async def test_a_node_that_is_not_trusted_gets_no_session(
    door: Door, state: NodeState, error: type[Exception]
):
    door.nodes._nodes[door.node.node_id] = replace(door.node, state=state)
    with pytest.raises(error):
        await door.open()
    assert door.last_entry()[0] == "node.session_refused"


async def test_a_draining_node_is_welcome_and_told_to_drain(door: Door):
    door.nodes._nodes[door.node.node_id] = replace(door.node, state=NodeState.DRAINING)
    session = await door.open()
    kinds = [one.message.WhichOneof("message") for one in session.outbox.take_unread()]
    assert kinds == ["welcome", "drain"]


async def test_a_hello_that_names_another_node_is_refused_on_record(door: Door):
    with pytest.raises(PermissionDeniedError, match="check 3"):
        await door.open(door.hello(node_id=build.node_id()))
    assert door.last_entry() == ("node.session_refused", "PERMISSION_DENIED")


@pytest.mark.parametrize("changes", [{"boot_id": "boot_1"}, {"slots": 0}])
async def test_a_malformed_hello_is_refused(door: Door, changes: dict[str, Any]):
    with pytest.raises(InvalidInputError):
        await door.open(door.hello(**changes))


async def test_a_stream_that_says_nothing_gets_no_session(door: Door):
    with pytest.raises(InvalidInputError, match="check 2"):
        await door.opener.open(requests(), node_id=door.node.node_id)


async def test_a_hello_that_does_not_come_in_time_is_not_waited_for(door: Door):
    async def silence() -> AsyncIterator[nodes_pb2.SessionRequest]:
        await door.parts.dispatcher._to_claim.wait()
        yield nodes_pb2.SessionRequest()

    door.opener._options = build.options(hello_deadline=timedelta(milliseconds=1))
    with pytest.raises(DeadlineExceededError, match="check 2"):
        await door.opener.open(silence(), node_id=door.node.node_id)


async def test_a_new_boot_loses_the_attempts_of_the_old_one(door: Door):
    older = await door.open()
    older.keyset_version = 1
    older.take_heartbeat(number=1, free_slots=2, now=0.0)
    await door.parts.find_queue_empty()
    door.parts.take(newcomer())
    await door.open()
    assert door.parts.leases.live == {}


# --- streams that end by themselves


@pytest.mark.parametrize(("seconds", "ended"), [(4.999, False), (5.0, True)])
async def test_silence_ends_the_stream_and_nothing_else(
    parts: Parts, door: Door, seconds: float, *, ended: bool
):
    session = parts.join()
    await parts.find_queue_empty()
    parts.take(newcomer())
    parts.clock.advance(timedelta(seconds=seconds))
    door.endpoint.end_stale()
    assert session.outbox.is_closed is ended
    assert isinstance(session.outbox.error, UnavailableError) is ended
    assert len(parts.leases.live) == 1
    assert parts.leases.released == []


async def test_sessions_end_between_half_of_their_age_and_all_of_it(parts: Parts, door: Door):
    ends = {round((await door.open()).ends_at) for _ in range(20)}
    assert len(ends) > 5
    assert min(ends) >= 300
    assert max(ends) <= 600
    session = parts.fleet.get(door.node.node_id)
    assert session is not None
    parts.clock.advance(timedelta(seconds=session.ends_at))
    session.last_message_at = parts.clock.monotonic()
    door.endpoint.end_stale()
    assert session.outbox.is_closed
    assert session.outbox.error is None


async def test_a_node_that_does_not_read_ends_its_own_session_only(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("control_plane.dispatch.session.MAX_QUEUED_MESSAGES", 1)
    slow, other = parts.join(slots=4), parts.join(slots=4)
    drain = nodes_pb2.SessionResponse(drain=nodes_pb2.Drain())
    assert slow.send(drain)
    assert not slow.send(drain)
    assert isinstance(slow.outbox.error, ResourceExhaustedError)
    assert other.send(drain)


# --- when a network parts, and comes back


def crowd(door: Door, count: int) -> list[Node]:
    nodes = [build.node() for _ in range(count)]
    door.nodes._nodes.update({node.node_id: node for node in nodes})
    return nodes


def hello_of(door: Door, node: Node) -> nodes_pb2.SessionRequest:
    return nodes_pb2.SessionRequest(hello=replace(door, node=node).hello())


async def test_sessions_that_end_at_once_are_noted_together(door: Door, monkeypatch: pytest.MonkeyPatch):
    notes: list[int] = []
    close = door.nodes.close_sessions

    async def counted(closed: Any) -> None:
        notes.append(len(closed))
        await asyncio.sleep(0)
        await close(closed)

    monkeypatch.setattr(door.nodes, "close_sessions", counted)
    nodes = crowd(door, 50)
    streams = [door.endpoint.serve(requests(hello_of(door, node)), node_id=node.node_id) for node in nodes]
    for stream in streams:
        await anext(stream)
    await asyncio.gather(*(stream.aclose() for stream in streams))
    async with asyncio.timeout(10):
        while sum(notes) < len(nodes):
            await asyncio.sleep(0)
    assert len(notes) <= 2
    for node in nodes:
        found = await door.nodes.find(node.node_id)
        assert found is not None
        assert found.session is not None
        assert not found.session.is_open


async def test_nodes_that_come_at_once_leave_the_database_to_others(
    door: Door, monkeypatch: pytest.MonkeyPatch
):
    inside, most = 0, 0
    open_session = door.nodes.open_session

    async def slow(*arguments: Any, **named: Any) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        return await open_session(*arguments, **named)

    monkeypatch.setattr(door.nodes, "open_session", slow)
    nodes = crowd(door, 20)
    sessions = await asyncio.gather(
        *(door.opener.open(requests(hello_of(door, node)), node_id=node.node_id) for node in nodes)
    )
    assert len({session.node_id for session in sessions}) == len(nodes)
    assert most == OPENINGS_AT_ONCE
