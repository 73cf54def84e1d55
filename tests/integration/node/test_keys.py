"""What a real node does when keys change while it works: rotated, revoked, and no word that its keyset is newest."""

import time
from datetime import timedelta

import pytest
from agentfactory.v1 import nodes_pb2

from shared.errors import RejectionReason
from shared.freshness import FreshnessStatement, sign_statement
from shared.ids import InstallationId
from shared.keyset import KeyPurpose, KeysetEntry
from shared.outcomes import Outcome
from tests.builders.roots import handover, with_chain
from tests.fakes.control_plane import INSTALLATION
from tests.fixtures.keys import ed25519_key, rsa_key, signer

FRESH = ed25519_key("freshness")
DAY = timedelta(days=1)


class Keys:
    """The keyset of the scripted control plane, changed step by step."""

    def __init__(self, control_plane, *more):
        self.control_plane = control_plane
        self.entries = {
            control_plane.order_key.key_id: self.entry(KeyPurpose.ORDER, control_plane.order_key),
            control_plane.publisher.key_id: self.entry(KeyPurpose.PUBLISHER, control_plane.publisher),
        } | {entry.key_id: entry for entry in more}

    def entry(self, purpose, key, **changes):
        now = self.control_plane.clock.now()
        bounds = {"not_before": now - DAY, "not_after": now + DAY} | changes
        return KeysetEntry(purpose=purpose, key=key.public, **bounds)

    async def issue(self, *changed, root=None, chain=()):
        self.entries |= {entry.key_id: entry for entry in changed}
        await self.control_plane.issue_keyset(*self.entries.values(), root=root)
        self.control_plane.keyset_envelope = with_chain(self.control_plane.keyset_envelope, *chain)

    async def update(self, session, *changed, root=None, chain=()):
        """Put a newer keyset in force; returns how long the node took."""
        self.control_plane.keyset_version += 1
        await self.issue(*changed, root=root, chain=chain)
        message = nodes_pb2.KeysetUpdate(keyset=self.control_plane.keyset_envelope)
        started = time.monotonic()
        self.control_plane.say(session, nodes_pb2.SessionResponse(keyset_update=message))
        version = self.control_plane.keyset_version
        await self.control_plane.wait_for(lambda: session.heartbeats[-1].keyset_version == version)
        return time.monotonic() - started

    async def state(self, *, version=None, ago=timedelta(0), key=FRESH, installation=INSTALLATION):
        made = FreshnessStatement(
            installation=InstallationId(installation),
            keyset_version=version or self.control_plane.keyset_version,
            issued_at=self.control_plane.clock.now() - ago,
        )
        return await sign_statement(made, signer(key))

    async def say(self, session, **changes):
        message = nodes_pb2.Freshness(statement=await self.state(**changes))
        self.control_plane.say(session, nodes_pb2.SessionResponse(freshness=message))


async def outcome(control_plane, session, actor, *, key=None):
    job = control_plane.job(session, actor, b"exit 0")
    await control_plane.send(session, job, key=key)
    return (await control_plane.receipt_of(job)).predicate


async def test_both_keys_of_an_overlap_count_and_the_old_one_ends(control_plane, start_node, actor):
    new = rsa_key("order of tomorrow")
    keys = Keys(control_plane)
    await keys.issue()
    await start_node()
    session = await control_plane.session()
    await keys.update(session, keys.entry(KeyPurpose.ORDER, new))
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED
    assert (await outcome(control_plane, session, actor, key=new)).outcome is Outcome.SUCCEEDED
    ended = keys.entry(KeyPurpose.ORDER, control_plane.order_key, not_after=control_plane.clock.now())
    await keys.update(session, ended)
    refused = await outcome(control_plane, session, actor)
    assert (refused.outcome, refused.rejection.reason) == (Outcome.REJECTED, RejectionReason.SIGNATURE)
    assert (await outcome(control_plane, session, actor, key=new)).outcome is Outcome.SUCCEEDED


async def test_a_key_of_another_purpose_orders_nothing(control_plane, start_node, actor):
    keys = Keys(control_plane)
    await keys.issue()
    await start_node()
    session = await control_plane.session()
    refused = await outcome(control_plane, session, actor, key=control_plane.publisher)
    assert (refused.outcome, refused.rejection.reason) == (Outcome.REJECTED, RejectionReason.SIGNATURE)


async def test_a_revoked_key_is_refused_at_once_and_what_it_ordered_stops(control_plane, start_node, actor):
    keys = Keys(control_plane)
    new = rsa_key("order of tomorrow")
    await keys.issue(keys.entry(KeyPurpose.ORDER, new))
    await start_node(slots=2)
    session = await control_plane.session()
    theirs = control_plane.job(session, actor, b"sleep 20000")
    ours = control_plane.job(session, actor, b"sleep 3000")
    await control_plane.send(session, theirs)
    await control_plane.send(session, ours, key=new)
    await control_plane.wait_for(lambda: len(session.started) == 2)

    now = control_plane.clock.now()
    took = await keys.update(session, keys.entry(KeyPurpose.ORDER, control_plane.order_key, revoked_at=now))
    stopped = (await control_plane.receipt_of(theirs)).predicate
    assert took < 5
    # Void, and for a reason that lets the control plane order it anew.
    assert (stopped.outcome, stopped.rejection.reason) == (Outcome.REJECTED, RejectionReason.STALE)
    assert "revoked" in stopped.rejection.message
    refused = await outcome(control_plane, session, actor)
    assert (refused.outcome, refused.rejection.reason) == (Outcome.REJECTED, RejectionReason.SIGNATURE)
    assert (await control_plane.receipt_of(ours)).predicate.outcome is Outcome.SUCCEEDED


async def test_a_revocation_by_a_clock_that_is_ahead_stops_what_runs_too(control_plane, start_node, actor):
    keys = Keys(control_plane)
    await keys.issue()
    await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"sleep 20000")
    await control_plane.send(session, job)
    await control_plane.wait_for(lambda: len(session.started) == 1)

    ahead = control_plane.clock.now() + timedelta(seconds=1)
    await keys.update(session, keys.entry(KeyPurpose.ORDER, control_plane.order_key, revoked_at=ahead))
    stopped = (await control_plane.receipt_of(job)).predicate

    assert (stopped.outcome, stopped.rejection.reason) == (Outcome.REJECTED, RejectionReason.STALE)
    assert stopped.finished_at >= ahead


async def test_without_a_statement_the_node_offers_nothing_and_refuses_what_comes(
    control_plane, start_node, actor
):
    keys = Keys(control_plane)
    await keys.issue(keys.entry(KeyPurpose.FRESHNESS, FRESH))
    await start_node()
    session = await control_plane.session()
    assert "agentfactory.freshness.v1" in session.hello.accepts
    await control_plane.wait_for(lambda: session.heartbeats)
    assert session.heartbeats[-1].free_slots == 0
    refused = await outcome(control_plane, session, actor)
    assert (refused.outcome, refused.rejection.reason) == (Outcome.REJECTED, RejectionReason.STALE)
    assert refused.rejection.check == 18

    await keys.say(session)
    await control_plane.wait_for(lambda: session.heartbeats[-1].free_slots > 0)
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED


async def test_a_welcome_brings_the_statement_along(control_plane, start_node, actor):
    keys = Keys(control_plane)
    await keys.issue(keys.entry(KeyPurpose.FRESHNESS, FRESH))
    statement = await keys.state()

    def spoil(welcome):
        welcome.freshness = statement

    control_plane.spoil_welcome = spoil
    await start_node()
    session = await control_plane.session()
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED


async def test_a_node_that_hears_nothing_more_stops_taking_orders(control_plane, start_node, actor):
    keys = Keys(control_plane)
    await keys.issue(keys.entry(KeyPurpose.FRESHNESS, FRESH))
    await start_node(max_staleness_s=5)
    session = await control_plane.session()
    await keys.say(session, ago=timedelta(seconds=2))
    await control_plane.wait_for(lambda: session.heartbeats and session.heartbeats[-1].free_slots > 0)
    await control_plane.wait_for(lambda: session.heartbeats[-1].free_slots == 0)
    refused = await outcome(control_plane, session, actor)
    assert refused.rejection.reason is RejectionReason.STALE


async def test_a_revocation_that_is_held_back_shows(control_plane, start_node, actor):
    keys = Keys(control_plane)
    await keys.issue(keys.entry(KeyPurpose.FRESHNESS, FRESH))
    await start_node()
    session = await control_plane.session()
    await keys.say(session, version=control_plane.keyset_version + 1)
    refused = await outcome(control_plane, session, actor)
    assert "exists" in refused.rejection.message


@pytest.mark.parametrize("forged", ["installation", "signature"])
async def test_a_forged_statement_ends_the_session(control_plane, start_node, forged):
    keys = Keys(control_plane)
    await keys.issue(keys.entry(KeyPurpose.FRESHNESS, FRESH))
    await start_node()
    session = await control_plane.session()
    if forged == "installation":
        await keys.say(session, installation="another")
    else:
        stolen = await keys.state(key=ed25519_key("stranger"))
        stolen = stolen.replace(ed25519_key("stranger").key_id.encode(), FRESH.key_id.encode())
        message = nodes_pb2.Freshness(statement=stolen)
        control_plane.say(session, nodes_pb2.SessionResponse(freshness=message))
    again = await control_plane.session(2)
    assert again.hello.node_id == session.hello.node_id


async def test_a_statement_by_a_key_that_the_keyset_does_not_list_is_ignored(
    control_plane, start_node, actor
):
    keys = Keys(control_plane)
    await keys.issue()
    await start_node()
    session = await control_plane.session()
    await keys.say(session, key=ed25519_key("stranger"))
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED
    assert len(control_plane.sessions) == 1


async def test_a_new_root_takes_over_while_orders_run_and_the_old_one_counts_no_more(
    control_plane, start_node, actor
):
    old, new, thief = control_plane.root, ed25519_key("root 2"), ed25519_key("thief")
    chain = await handover(old, new, installation=INSTALLATION)
    keys = Keys(control_plane)
    await keys.issue()
    node = await start_node()
    session = await control_plane.session()
    running = control_plane.job(session, actor, b"sleep 500")
    await control_plane.send(session, running)
    await control_plane.wait_for(lambda: session.started)

    await keys.update(session, root=new, chain=(chain,))
    assert (await control_plane.receipt_of(running)).predicate.outcome is Outcome.SUCCEEDED
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED

    # Forged, a link left out, and back to the old root: each ends the session and changes nothing.
    forged = await handover(new, thief, by=(thief, thief), installation=INSTALLATION)
    skipped = await handover(ed25519_key("root 3"), thief, installation=INSTALLATION)
    for root, links in ((thief, (chain, forged)), (thief, (chain, skipped)), (old, ()), (old, (chain,))):
        await refuses(control_plane, keys, root=root, chain=links)

    # Started again with the first root pinned, it has not forgotten.
    await node.stop()
    before = len(control_plane.sessions)
    await start_node()
    session = await control_plane.session(before + 1)
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED
    await refuses(control_plane, keys, root=old, chain=())


async def refuses(control_plane, keys, *, root, chain):
    """A newer keyset by this root keeps the node out of every session, until it is offered the right one."""
    right, version = control_plane.keyset_envelope, control_plane.keyset_version
    control_plane.keyset_version += 1
    await keys.issue(root=root, chain=chain)
    before = len(control_plane.sessions)
    control_plane.say(control_plane.sessions[-1], None)
    await control_plane.wait_for(lambda: len(control_plane.sessions) >= before + 2)
    assert not any(one.heartbeats for one in control_plane.sessions[before:])
    control_plane.keyset_envelope, control_plane.keyset_version = right, version
    heard = await control_plane.wait_for(lambda: control_plane.sessions[-1].heartbeats)
    assert heard[-1].keyset_version == version
