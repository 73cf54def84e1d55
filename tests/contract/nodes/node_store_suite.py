"""What `NodeStore` promises, held by the fake and by Postgres alike."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from control_plane.audit.domain import NewAuditEntry
from control_plane.nodes.domain import EnrollmentToken, Node, NodeState, SandboxLayer, hash_token
from control_plane.nodes.ports import SessionBeat, SessionOpening
from shared.clock import SystemClock, SystemRandom
from shared.errors import (
    EnrollmentTokenInvalidError,
    NodeEvictedError,
    NodeQuarantinedError,
    NotFoundError,
    PermissionDeniedError,
)
from shared.ids import AUDIT_ENTRY, NODE, TenantId, new_id
from tests.contract.nodes.stage import Stage
from tests.fixtures import dispatch as build

CLOCK, RANDOM = SystemClock(), SystemRandom()
OTHER = TenantId("other")


def entry(action: str = "node.something") -> NewAuditEntry:
    return NewAuditEntry(
        audit_entry_id=new_id(AUDIT_ENTRY, CLOCK, RANDOM),
        tenant_id=build.TENANT,
        actor="me",
        action=action,
        subject="node",
    )


def token(secret: str, *, ttl: timedelta = timedelta(hours=1)) -> EnrollmentToken:
    now = CLOCK.now()
    return EnrollmentToken(
        token_hash=hash_token(secret),
        tenant_id=build.TENANT,
        zone="north",
        created_by="me",
        created_at=now - timedelta(hours=2),
        expires_at=now + ttl,
    )


def fresh_node() -> Node:
    return build.node(new_id(NODE, CLOCK, RANDOM))


def opening(node: Node) -> SessionOpening:
    return SessionOpening(
        node_id=node.node_id,
        boot_id=build.boot_id(),
        replica_id="replica-1",
        engine=build.ENGINE,
        slots=4,
        sandbox_layers=(
            SandboxLayer(name="seccomp", active=True, detail="allow-list"),
            SandboxLayer(name="landlock", active=False, detail="not in this kernel"),
        ),
    )


async def enrolled(stage: Stage) -> Node:
    node, secret = fresh_node(), str(new_id(NODE, CLOCK, RANDOM))
    await stage.nodes.add_token(token(secret), audit=entry())
    await stage.nodes.enroll(node, token_hash=hash_token(secret), audit=entry())
    return node


class NodeStoreSuite:
    """Every implementation is a subclass with a fixture `stage` of its own."""

    async def test_a_token_is_found_by_its_hash_alone(self, stage: Stage):
        made = token("secret")
        await stage.nodes.add_token(made, audit=entry("node.token_created"))
        assert await stage.nodes.find_token(hash_token("secret")) == made
        assert await stage.nodes.find_token("secret") is None
        assert await stage.actions() == ["node.token_created"]

    async def test_a_token_enrolls_one_node_once(self, stage: Stage):
        node = fresh_node()
        await stage.nodes.add_token(token("secret"), audit=entry())
        await stage.nodes.enroll(node, token_hash=hash_token("secret"), audit=entry())
        found = await stage.nodes.find(node.node_id)
        assert (found.receipt_key_id, found.state) == (node.receipt_key_id, NodeState.ACTIVE)
        used = await stage.nodes.find_token(hash_token("secret"))
        assert used.node_id == node.node_id
        assert used.used_at is not None
        with pytest.raises(EnrollmentTokenInvalidError):
            await stage.nodes.enroll(fresh_node(), token_hash=hash_token("secret"), audit=entry())

    async def test_of_two_who_race_for_a_token_one_wins(self, stage: Stage):
        await stage.nodes.add_token(token("secret"), audit=entry())
        tries = [
            stage.nodes.enroll(fresh_node(), token_hash=hash_token("secret"), audit=entry("node.enrolled"))
            for _ in range(5)
        ]
        answers = await asyncio.gather(*tries, return_exceptions=True)
        assert [answer for answer in answers if answer is None] == [None]
        assert (await stage.actions()).count("node.enrolled") == 1

    @pytest.mark.parametrize("ttl", [timedelta(0), timedelta(seconds=-1)])
    async def test_an_expired_token_enrolls_nobody_and_leaves_no_entry(self, stage: Stage, ttl: timedelta):
        await stage.nodes.add_token(token("late", ttl=ttl), audit=entry())
        node = fresh_node()
        with pytest.raises(EnrollmentTokenInvalidError):
            await stage.nodes.enroll(node, token_hash=hash_token("late"), audit=entry("node.enrolled"))
        assert await stage.nodes.find(node.node_id) is None
        assert "node.enrolled" not in await stage.actions()

    async def test_a_node_is_seen_by_its_own_tenant_only(self, stage: Stage):
        node = await enrolled(stage)
        assert (await stage.nodes.get(build.TENANT, node.node_id)).node_id == node.node_id
        with pytest.raises(NotFoundError):
            await stage.nodes.get(OTHER, node.node_id)
        assert await stage.nodes.list(OTHER, after=None, limit=10) == []

    async def test_pages_go_from_new_to_old_without_gap_or_repeat(self, stage: Stage):
        made = sorted([(await enrolled(stage)).node_id for _ in range(5)], reverse=True)
        first = await stage.nodes.list(build.TENANT, after=None, limit=3)
        second = await stage.nodes.list(build.TENANT, after=first[-1].node_id, limit=3)
        assert [node.node_id for node in (*first, *second)] == made

    async def test_a_state_is_saved_with_its_entry_and_an_evicted_node_stays_evicted(self, stage: Stage):
        node = await enrolled(stage)
        await stage.nodes.save_state(node.evict(), audit=entry("node.evicted"))
        await stage.nodes.save_state(node.drain(), audit=entry("node.drained"))
        assert (await stage.nodes.find(node.node_id)).state is NodeState.EVICTED
        assert "node.drained" not in await stage.actions()
        assert "node.evicted" in await stage.actions()
        with pytest.raises(NotFoundError):
            await stage.nodes.save_state(fresh_node().evict(), audit=entry())

    async def test_a_change_of_state_is_told_to_every_replica(self, stage: Stage):
        node = await enrolled(stage)
        await stage.nodes.save_state(node.drain(), audit=entry())
        if stage.told is not None:
            assert ("af_nodes", (node.node_id,)) in stage.told.notes

    async def test_a_session_keeps_the_layers_of_its_newest_hello(self, stage: Stage):
        node = await enrolled(stage)
        said = opening(node)
        await stage.nodes.open_session(said, audit=entry())
        found = await stage.nodes.get(node.tenant_id, node.node_id)
        assert found.session.sandbox_layers == said.sandbox_layers
        await stage.nodes.open_session(replace(said, sandbox_layers=()), audit=entry())
        found = await stage.nodes.get(node.tenant_id, node.node_id)
        assert found.session.sandbox_layers == ()

    async def test_a_renewed_certificate_is_remembered(self, stage: Stage):
        node = await enrolled(stage)
        await stage.nodes.save_certificate(node.node_id, "ff", audit=entry())
        assert (await stage.nodes.find(node.node_id)).certificate_serial == "ff"

    async def test_rule_3_every_session_of_a_node_has_a_higher_epoch(self, stage: Stage):
        node = await enrolled(stage)
        epochs = await asyncio.gather(
            *(stage.nodes.open_session(opening(node), audit=entry()) for _ in range(5))
        )
        assert sorted(epochs) == [1, 2, 3, 4, 5]
        session = (await stage.nodes.find(node.node_id)).session
        assert (session.session_epoch, session.is_open, session.slots) == (5, True, 4)

    async def test_only_the_newest_session_can_close_and_beat(self, stage: Stage):
        node, other = await enrolled(stage), await enrolled(stage)
        await stage.nodes.open_session(opening(node), audit=entry())
        await stage.nodes.open_session(opening(node), audit=entry())
        await stage.nodes.open_session(opening(other), audit=entry())
        beats = [
            SessionBeat(node_id=node.node_id, session_epoch=1, free_slots=3),
            SessionBeat(node_id=other.node_id, session_epoch=1, free_slots=3),
        ]
        assert list(await stage.nodes.beat(beats)) == [node.node_id]
        assert (await stage.nodes.find(other.node_id)).session.free_slots == 3
        assert (await stage.nodes.find(other.node_id)).last_seen_at is not None
        await stage.nodes.close_sessions([(node.node_id, 1)])
        assert (await stage.nodes.find(node.node_id)).session.is_open
        await stage.nodes.close_sessions([(other.node_id, 1), (node.node_id, 2)])
        assert not (await stage.nodes.find(node.node_id)).session.is_open
        assert not (await stage.nodes.find(other.node_id)).session.is_open

    @pytest.mark.parametrize(
        ("state", "error"),
        [(NodeState.QUARANTINED, NodeQuarantinedError), (NodeState.EVICTED, NodeEvictedError)],
    )
    async def test_a_node_that_is_not_trusted_opens_no_session(
        self, stage: Stage, state: NodeState, error: type[Exception]
    ):
        node = await enrolled(stage)
        await stage.nodes.save_state(replace(node, state=state), audit=entry())
        with pytest.raises(error):
            await stage.nodes.open_session(opening(node), audit=entry("node.session_opened"))
        assert "node.session_opened" not in await stage.actions()

    async def test_an_attempt_that_was_never_given_belongs_to_nobody(self, stage: Stage):
        node = await enrolled(stage)
        with pytest.raises(PermissionDeniedError):
            await stage.nodes.owner_of_attempt(node.node_id, build.execution_id(), 1)
        assert await stage.nodes.find_order(node.node_id, build.MODULE_DIGEST) is None
