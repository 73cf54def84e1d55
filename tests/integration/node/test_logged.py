"""Check 20 against a control plane that lies: what is not in the one log does not run, and two logs are found out."""

import grpc
import pytest
from agentfactory.v1 import nodes_pb2

from shared.checkpoints import parse_checkpoint
from shared.errors import RejectionReason
from shared.keyset import KeyPurpose
from shared.outcomes import Outcome
from tests.fakes.control_plane import publish
from tests.fakes.scripted_log import ScriptedLog
from tests.fixtures.keys import ed25519_key
from tests.integration.node.conftest import ACTOR
from tests.integration.node.test_keys import Keys, outcome

UNIMPLEMENTED = (grpc.StatusCode.UNIMPLEMENTED, "older than the log's proofs")


def assert_refused(predicate, reason: str) -> None:
    """The order is rejected by check 20, for a reason that does not count against its execution."""
    assert predicate.outcome is Outcome.REJECTED
    assert (predicate.rejection.check, predicate.rejection.reason) == (20, RejectionReason.STALE)
    assert predicate.rejection.reason.concerns_node_alone
    assert predicate.rejection.message.startswith(f"check 20: {reason}: ")


@pytest.mark.parametrize("kind", ["template", "policy"])
async def test_what_is_not_in_the_log_does_not_run(control_plane, start_node, actor, kind):
    control_plane.log.keep_back(kind)
    await start_node()
    session = await control_plane.session()
    assert_refused(await outcome(control_plane, session, actor), "NOT_LOGGED")
    assert control_plane.fetches == 0
    assert not session.started


async def test_what_is_refused_for_the_log_runs_once_it_is_logged(control_plane, start_node, actor):
    control_plane.log.keep_back("template")
    await start_node()
    session = await control_plane.session()
    assert_refused(await outcome(control_plane, session, actor), "NOT_LOGGED")
    control_plane.log.kept_back.clear()
    other = await publish(ACTOR.read_bytes(), version="1.0.1")
    assert (await outcome(control_plane, session, other)).outcome is Outcome.SUCCEEDED


async def test_many_orders_of_one_template_cost_one_question(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED
    assert control_plane.log.asked == 1
    for _ in range(5):
        assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED
    assert control_plane.log.asked == 1


def other_index(answer):
    answer.template.log_index += 1


def other_salt(answer):
    answer.template.salt = bytes(16)


def no_salt(answer):
    answer.policy.salt = b""


def other_path(answer):
    answer.policy.path.append(bytes(32))


def other_leaf(answer):
    answer.template.CopyFrom(answer.policy)


@pytest.mark.parametrize("spoil", [other_index, other_salt, no_salt, other_path, other_leaf])
async def test_a_false_proof_is_none(control_plane, start_node, actor, spoil):
    def lie(answer: nodes_pb2.GetLogProofResponse) -> None:
        if answer.HasField("template"):
            spoil(answer)

    control_plane.log.append("something else")
    control_plane.spoil_log = lie
    await start_node()
    session = await control_plane.session()
    assert_refused(await outcome(control_plane, session, actor), "PROOF_INVALID")


async def test_a_checkpoint_by_another_key_is_none(control_plane, start_node, actor):
    forged = ScriptedLog(control_plane.log.installation, key=ed25519_key("somebody's"))
    await start_node()
    session = await control_plane.session()
    control_plane.log = forged
    assert_refused(await outcome(control_plane, session, actor), "UNKNOWN_KEY")


async def test_a_checkpoint_of_another_installation_is_none(control_plane, start_node, actor):
    await start_node()
    session = await control_plane.session()
    control_plane.log.installation = "another"
    assert_refused(await outcome(control_plane, session, actor), "UNKNOWN_KEY")


async def test_two_truths_stop_the_node_that_is_told_the_second(control_plane, start_node, actor):
    """A split view: one log for this node, one for the others; a replica lets this node see the others' one."""
    log = control_plane.log
    log.append("before")
    ours, theirs = log.copy(), log.copy()
    ours.append("only for this node")
    theirs.append("for everybody else")
    running = await start_node()
    session = await control_plane.session()
    node_id = session.hello.node_id
    control_plane.logs[node_id] = ours
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED

    control_plane.logs[node_id] = theirs
    theirs.append("and more")
    theirs.append("and more than that")
    other = await publish(ACTOR.read_bytes(), version="1.0.1")
    assert_refused(await outcome(control_plane, session, other), "LOG_FORKED")
    told = await control_plane.wait_for(
        lambda: next((beat for beat in session.heartbeats if beat.log.problem), None)
    )
    assert told.free_slots == 0
    assert told.log.size == len(ours.leaves)
    # What was proved before does not run either, and a restart does not make it forget.
    assert_refused(await outcome(control_plane, session, actor), "LOG_FORKED")
    evidence = (running.settings.data_dir / "log.fork").read_bytes()
    assert (await theirs.checkpoint(1)).split(b"\n")[0] in evidence
    readiness = await running.node.readiness()
    assert not readiness.ready
    assert "log" in readiness.detail
    await running.stop()
    control_plane.logs[node_id] = ours
    await start_node()
    again = await control_plane.session(2)
    assert_refused(await outcome(control_plane, again, actor), "LOG_FORKED")


async def test_the_same_size_with_another_root_is_a_fork(control_plane, start_node, actor):
    log = control_plane.log
    log.append("one")
    await start_node()
    session = await control_plane.session()
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED
    log.leaves[0] = bytes(32)
    other = await publish(ACTOR.read_bytes(), version="1.0.1")
    log.keep_back("template")
    assert_refused(await outcome(control_plane, session, other), "LOG_FORKED")


async def test_a_log_that_became_shorter_is_not_believed(control_plane, start_node, actor):
    log = control_plane.log
    for number in range(5):
        log.append(str(number))
    await start_node()
    session = await control_plane.session()
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED
    shorter = ScriptedLog(log.installation)
    control_plane.log = shorter
    other = await publish(ACTOR.read_bytes(), version="1.0.1")
    assert_refused(await outcome(control_plane, session, other), "ROLLBACK")


async def test_a_restart_keeps_the_checkpoint(control_plane, start_node, actor):
    log = control_plane.log
    log.append("one")
    running = await start_node()
    session = await control_plane.session()
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED
    kept = parse_checkpoint((running.settings.data_dir / "log.checkpoint").read_bytes()).checkpoint
    assert kept.size == len(log.leaves)
    await running.stop()
    rewritten = ScriptedLog(log.installation)
    for number in range(10):
        rewritten.append(f"rewritten {number}")
    control_plane.log = rewritten
    await start_node()
    again = await control_plane.session(2)
    assert_refused(await outcome(control_plane, again, actor), "LOG_FORKED")


async def test_a_checkpoint_that_gets_too_old_counts_no_more(control_plane, start_node, actor):
    await start_node(max_log_age_s=3)
    session = await control_plane.session()
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED
    control_plane.log_refusal = (grpc.StatusCode.UNAVAILABLE, "kept back")

    async def refused():
        return (await outcome(control_plane, session, actor)).outcome is Outcome.REJECTED

    for _ in range(1000):
        if await refused():
            break
    assert_refused(await outcome(control_plane, session, actor), "LOG_UNAVAILABLE")
    control_plane.log_refusal = None
    other = await publish(ACTOR.read_bytes(), version="1.0.1")
    assert (await outcome(control_plane, session, other)).outcome is Outcome.SUCCEEDED


async def test_rule_11_an_older_control_plane_proves_nothing(control_plane, start_node, actor):
    control_plane.log_refusal = UNIMPLEMENTED
    await start_node("strict")
    assert_refused(await outcome(control_plane, await control_plane.session(1), actor), "LOG_UNAVAILABLE")
    await start_node("upgrading", log_require="when_given")
    assert (await outcome(control_plane, await control_plane.session(2), actor)).outcome is Outcome.SUCCEEDED
    await start_node("careless", log_require="off")
    assert (await outcome(control_plane, await control_plane.session(3), actor)).outcome is Outcome.SUCCEEDED


async def test_when_given_a_proof_has_to_be_right(control_plane, start_node, actor):
    control_plane.log.keep_back("template")
    await start_node(log_require="when_given")
    assert_refused(await outcome(control_plane, await control_plane.session(), actor), "NOT_LOGGED")


async def test_the_key_of_the_log_is_rotated(control_plane, start_node, actor):
    keys, old, new = Keys(control_plane), control_plane.log.key, ed25519_key("log of tomorrow")
    await keys.issue(keys.entry(KeyPurpose.LOG, old), keys.entry(KeyPurpose.LOG, new))
    await start_node()
    session = await control_plane.session()
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED
    control_plane.log.key = new
    other = await publish(ACTOR.read_bytes(), version="1.0.1")
    assert (await outcome(control_plane, session, other)).outcome is Outcome.SUCCEEDED
    ended = keys.entry(KeyPurpose.LOG, old, revoked_at=control_plane.clock.now())
    await keys.update(session, ended, keys.entry(KeyPurpose.LOG, new))
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED
    control_plane.log.key = old
    third = await publish(ACTOR.read_bytes(), version="1.0.2")
    assert_refused(await outcome(control_plane, session, third), "UNKNOWN_KEY")


async def test_a_restored_installation_begins_a_log_of_its_own(control_plane, start_node, actor):
    control_plane.log.append("of the epoch before")
    running = await start_node()
    session = await control_plane.session()
    assert (await outcome(control_plane, session, actor)).outcome is Outcome.SUCCEEDED
    await running.stop()
    control_plane.log = ScriptedLog(control_plane.log.installation)
    control_plane.epoch, control_plane.keyset_version = 2, control_plane.keyset_version + 1
    await control_plane.issue_keyset()
    await start_node()
    again = await control_plane.session(2)
    assert (await outcome(control_plane, again, actor)).outcome is Outcome.SUCCEEDED
