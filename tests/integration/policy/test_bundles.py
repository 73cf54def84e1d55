"""Bundles over a real Postgres and two replicas: published, put in force, rolled back, and every way that fails."""

import asyncio
import time
from datetime import timedelta

import pytest
from sqlalchemy import text

from control_plane.policy.answers import NOT_LOADED
from control_plane.policy.bundles import BundleRef
from control_plane.policy.domain import Question
from control_plane.policy.review import Candidate, Case
from shared.clock import SystemClock
from shared.errors import (
    AgentFactoryError,
    ConflictError,
    InvalidInputError,
    KeyRevokedError,
    MalformedError,
    NotFoundError,
    PackageAlteredError,
    PackageTooLargeError,
    PermissionDeniedError,
    PolicyDeniedError,
    PolicyInvalidError,
    RollbackError,
    UnknownKeyError,
    UnsignedError,
    WrongStateError,
)
from shared.policy_bundle import make_policy, sign_policy
from tests.fixtures.keys import ed25519_key, signer
from tests.integration.policy.replicas import (
    ADMIN,
    ASKED,
    BUILTIN,
    DATA,
    FOREIGNER,
    KEY,
    files,
    run_as_owner,
    running_replica,
)

BOUND = 0.2
"""Seconds within which every replica has what was activated; measured are a few milliseconds."""
DENIES = files(refuse="MAINTENANCE")


async def rows(replica, query: str):
    async with replica.database.reading() as connection:
        return [tuple(row) for row in await connection.execute(text(query))]


async def seconds_until(replica, digest: str) -> float:
    began = time.monotonic()
    while (known := replica.active.known()) is None or known.digest != digest:
        await asyncio.sleep(0.001)
        assert time.monotonic() - began < 10, "it never came into force"
    return time.monotonic() - began


async def test_an_activated_bundle_is_in_force_on_every_replica_within_the_bound(
    replica, second, record_property
):
    assert (await second.execute()).allowed
    bundle = await replica.publish(1, DENIES)
    assert (await replica.execute()).allowed, "publishing puts nothing in force"

    slowest = 0.0
    for number in range(10):
        before = await replica.library.digest_in_force()
        if number % 2:
            activated = await replica.rollback()
        else:
            activated = await replica.activate(1)
        assert activated.previous_digest == before
        slowest = max(slowest, await seconds_until(second, activated.bundle.digest))
        for each in (replica, second):
            decision = await each.execute()
            assert decision.policy_digest == activated.bundle.digest
            assert decision.allowed is bool(number % 2)
    record_property("slowest_ms", round(slowest * 1e3, 1))
    assert slowest < BOUND
    assert bundle.version == 1


async def test_rolling_back_twice_goes_back_twice_and_then_there_is_nothing_before(replica):
    for version in (1, 2, 3):
        await replica.publish(version, files(refuse=f"V{version}"))
        await replica.activate(version)
    went = [(await replica.rollback()).bundle.version for _ in range(3)]
    assert went == [2, 1, 0]
    assert (await replica.execute()).allowed
    with pytest.raises(WrongStateError):
        await replica.rollback()
    await replica.activate(3)
    assert (await replica.rollback()).bundle.version == 0


async def test_activating_what_is_in_force_changes_nothing(replica):
    await replica.publish(1, DENIES)
    first = await replica.activate(1)
    again = await replica.activate(1, expected="sha256:" + "0" * 64)
    assert again.activation == first.activation
    assert await rows(replica, "SELECT count(*) FROM policy_activations") == [(1,)]


async def test_publishing_the_same_bytes_again_returns_what_is_stored(replica):
    first = await replica.publish(1)
    assert await replica.publish(1) == first
    assert await rows(replica, "SELECT action FROM audit_entries") == [("policy.published",)]


@pytest.mark.parametrize("version", [1, 2])
async def test_rollback_attack_a_version_that_goes_back_is_refused(replica, version):
    await replica.publish(2)
    with pytest.raises(RollbackError):
        await replica.publish(version, files(refuse="OTHER"))


async def test_only_somebody_who_read_what_is_in_force_replaces_it(replica):
    await replica.publish(1, DENIES)
    with pytest.raises(ConflictError):
        await replica.activate(1, expected="sha256:" + "0" * 64)
    assert (await replica.execute()).allowed


async def test_of_concurrent_activations_exactly_one_wins(replica, second):
    before = await replica.library.digest_in_force()
    for version in (1, 2, 3, 4):
        await replica.publish(version, files(refuse=f"V{version}"))
    outcomes = await asyncio.gather(
        *((replica, second)[version % 2].activate(version, expected=before) for version in (1, 2, 3, 4)),
        return_exceptions=True,
    )
    won = [each for each in outcomes if not isinstance(each, Exception)]
    assert len(won) == 1
    assert all(isinstance(each, ConflictError) for each in outcomes if isinstance(each, Exception))
    for each in (replica, second):
        await seconds_until(each, won[0].bundle.digest)


async def signed(version=1, content=None, key=KEY):
    made = make_policy(name="base", version=version, files=content or files())
    return await sign_policy(made, [signer(key)]), dict(made.files)


async def tampered_file():
    envelope, content = await signed()
    return envelope, content | {"builtin.rego": content["builtin.rego"] + b"\n"}


async def surplus_file():
    envelope, content = await signed()
    return envelope, content | {"more.rego": b"package more"}


async def foreign_key():
    return await signed(key=ed25519_key("somebody"))


async def tampered_envelope():
    envelope, content = await signed()
    return envelope.replace(b'"sig":"', b'"sig":"AAAA'), content


async def unsigned():
    envelope, content = await signed()
    head, _, _ = envelope.partition(b'"signatures":')
    return head + b'"signatures":[]}', content


async def huge():
    envelope, content = await signed()
    return envelope, content | {"builtin.rego": b"#" * 50_000_000}


async def broken():
    return await signed(content={"a.rego": b"package agentfactory\nexecute := {", "data.json": DATA})


@pytest.mark.parametrize(
    ("attack", "refusal"),
    [
        (tampered_file, PackageAlteredError),
        (surplus_file, PackageAlteredError),
        (foreign_key, UnknownKeyError),
        (tampered_envelope, AgentFactoryError),
        (unsigned, UnsignedError),
        (huge, AgentFactoryError),
        (broken, PolicyInvalidError),
    ],
    ids=lambda case: case.__name__,
)
async def test_what_is_not_right_is_refused_and_changes_nothing(replica, attack, refusal):
    envelope, content = await attack()
    began = time.monotonic()
    with pytest.raises(refusal) as refused:
        await replica.library.publish(ADMIN, envelope, content)
    assert time.monotonic() - began < 5
    assert str(refused.value)
    assert await rows(replica, "SELECT version FROM policy_bundles") == [(0,)]
    assert await rows(replica, "SELECT action FROM audit_entries") == []
    assert (await replica.execute()).allowed


FAILING = "package agentfactory_test\nimport rego.v1\ntest_nobody_executes if not data.agentfactory.execute.allowed with input as {}\ntest_wrong if 1 == 2\n"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (files(test=FAILING), "data.agentfactory_test.test_wrong"),
        (files(test="package agentfactory_test\ntest_x = y { y := 1 }"), "test"),
        ({"a.rego": b"package agentfactory\n", "data.json": DATA}, "probe execute"),
        (
            {
                "a.rego": BUILTIN.replace(
                    "execute := answer(execute_denials)",
                    'execute := {"allowed": true, "reason": "YES", "limits": ceilings}',
                ).encode(),
                "data.json": DATA,
            },
            "an empty input is denied",
        ),
        (
            {
                "a.rego": BUILTIN.replace("execute := answer(execute_denials)", "execute := true").encode(),
                "data.json": DATA,
            },
            "probe execute: a sample is answered",
        ),
    ],
    ids=["own-test-fails", "own-test-is-no-rego", "answers-nothing", "allows-anything", "wrong-shape"],
)
async def test_a_bundle_that_fails_its_trial_is_not_activated(replica, content, named):
    await replica.publish(1, content)
    with pytest.raises(PolicyInvalidError, match=named):
        await replica.activate(1)
    assert (await replica.execute()).allowed
    assert await rows(replica, "SELECT count(*) FROM policy_activations") == [(0,)]


async def test_a_replica_that_cannot_load_what_is_in_force_denies_and_never_goes_on_with_the_old(
    postgres_18, policy_database, replica
):
    class Unable:
        """An engine of another build, to which the bundle is nothing."""

        takes_anything = True

        def __init__(self, engines):
            self.engines, self.able = engines, True

        async def load(self, bundle):
            if not self.able:
                raise PolicyInvalidError("a.rego:1: there is no such built-in")
            return await self.engines.load(bundle)

    engines = Unable(replica.engines)
    async with running_replica(postgres_18, policy_database, engines=engines) as other:
        assert (await other.execute()).allowed
        engines.able = False
        await replica.publish(1, files())
        activated = await replica.activate(1)
        await seconds_until(other, activated.bundle.digest)
        decision = await other.execute()
        assert (decision.allowed, decision.reason) == (False, NOT_LOADED)
        assert decision.policy_digest == activated.bundle.digest
        assert other.seen.versions[-1] == (0, False)
        engines.able = True
        await other.active.confirmed()
        assert (await other.execute()).allowed


@pytest.mark.parametrize("column", ["files", "envelope"])
async def test_a_bundle_altered_in_the_database_is_denied_by_whoever_loads_it(
    postgres_18, policy_database, replica, column
):
    await replica.publish(1, files(refuse="MAINTENANCE"))
    await replica.activate(1)
    await run_as_owner(
        postgres_18,
        policy_database,
        "UPDATE policy_bundles SET files = convert_to(replace(convert_from(files, 'UTF8'), 'MAINTENANCE', 'X'), 'UTF8') WHERE version = 1"
        if column == "files"
        else "UPDATE policy_bundles SET envelope = overlay(envelope PLACING 'x' FROM 40) WHERE version = 1",
    )
    async with running_replica(postgres_18, policy_database) as fresh:
        decision = await fresh.execute()
        assert (decision.allowed, decision.reason) == (False, NOT_LOADED)


async def test_a_revoked_key_signs_nothing_more_and_what_it_signed_before_stays(
    postgres_18, policy_database, replica
):
    await replica.publish(1)
    await replica.publish(2, DENIES)
    await replica.activate(1)
    revoked = {KEY.key_id: SystemClock().now()}
    replica.keys.revoked = revoked
    with pytest.raises(UnknownKeyError):
        await replica.publish(3, files(refuse="LATE"))
    with pytest.raises(KeyRevokedError):
        await replica.activate(2)
    async with running_replica(postgres_18, policy_database) as fresh:
        fresh.keys.revoked = revoked
        assert (await fresh.execute()).allowed
    assert (await replica.rollback()).bundle.version == 0


async def test_to_other_tenants_bundles_do_not_exist(replica):
    await replica.publish(1)
    digest = await replica.library.digest_in_force()
    for attempt in (
        replica.publish(2, DENIES, subject=FOREIGNER),
        replica.activate(1, subject=FOREIGNER),
        replica.library.rollback(FOREIGNER, expected=digest),
        replica.library.get(FOREIGNER, BundleRef()),
        replica.library.list(FOREIGNER, page_size=0, page_token=""),
        replica.review.test(FOREIGNER, Candidate(ref=BundleRef(version=1)), []),
        replica.review.replay(FOREIGNER, Candidate(files=files()), question="", limit=0),
    ):
        with pytest.raises(PermissionDeniedError):
            await attempt


async def test_a_list_comes_in_pages_highest_version_first(replica):
    for version in (1, 2, 3):
        await replica.publish(version, files(refuse=f"V{version}"))
    first = await replica.library.list(ADMIN, page_size=3, page_token="")
    rest = await replica.library.list(ADMIN, page_size=3, page_token=first.next_page_token)
    assert [each.version for each in (*first.items, *rest.items)] == [3, 2, 1, 0]
    assert rest.next_page_token == ""
    with pytest.raises(InvalidInputError):
        await replica.library.list(ADMIN, page_size=3, page_token="bm9wZQ")


async def recorded(replica) -> str:
    with pytest.raises(PolicyDeniedError):
        await replica.gate.require(Question.EXECUTE, ASKED, action="execution.denied", subject="x")
    ((decision_id,),) = await rows(
        replica, "SELECT decision_id FROM decisions ORDER BY decision_id DESC LIMIT 1"
    )
    return decision_id


async def test_a_recorded_decision_says_all_and_comes_out_the_same_under_its_own_bundle(replica):
    bundle = await replica.publish(1, DENIES)
    await replica.activate(1)
    decision_id = await recorded(replica)
    await replica.rollback()

    decision = await replica.review.decision(ADMIN.tenant_id, decision_id)
    assert (decision.policy_digest, decision.reason, decision.reasons, decision.engine) == (
        bundle.digest,
        "MAINTENANCE",
        ("MAINTENANCE",),
        "embedded",
    )
    assert decision.input_digest.startswith("sha256:")
    assert decision.duration_us >= 0
    made = await replica.review.reevaluate(ADMIN.tenant_id, decision_id)
    assert made.same
    assert made.again.answer.reason == "MAINTENANCE"
    with pytest.raises(NotFoundError):
        await replica.review.decision(FOREIGNER.tenant_id, decision_id)
    with pytest.raises(NotFoundError):
        await replica.review.reevaluate(FOREIGNER.tenant_id, decision_id)


async def test_a_decision_that_was_altered_does_not_come_out_the_same(postgres_18, policy_database, replica):
    await replica.publish(1, DENIES)
    await replica.activate(1)
    decision_id = await recorded(replica)
    await run_as_owner(
        postgres_18, policy_database, "UPDATE decisions SET allowed = true, reason = 'ALLOWED'"
    )
    assert not (await replica.review.reevaluate(ADMIN.tenant_id, decision_id)).same


async def test_a_replay_names_what_would_change(replica):
    await replica.publish(1, DENIES)
    await replica.activate(1)
    decision_id = await recorded(replica)
    same = await replica.review.replay(ADMIN, Candidate(ref=BundleRef(version=1)), question="", limit=0)
    assert (same.replayed, same.changed) == (1, ())
    changed = await replica.review.replay(ADMIN, Candidate(files=files()), question="execute", limit=10)
    ((decision, again),) = changed.changed
    assert (decision.decision_id, again.answer.allowed) == (decision_id, True)
    none = await replica.review.replay(ADMIN, Candidate(files=files()), question="read_audit", limit=10)
    assert none.replayed == 0


async def test_a_candidate_is_tried_without_a_trace(replica):
    cases = [
        Case(question="execute", input=b'{"subject": {"roles": ["caller"]}}'),
        Case(question="execute", input=b"{}"),
    ]
    tried = await replica.review.test(ADMIN, Candidate(files=files(test=FAILING)), cases)
    failed = [result.name for result in tried.results if not result.passed]
    assert failed == ["data.agentfactory_test.test_wrong"]
    assert len(tried.answers) == 2
    assert not tried.answers[1].answer.allowed
    assert await rows(replica, "SELECT version FROM policy_bundles") == [(0,)]
    for case in (Case(question="nothing", input=b"{}"), Case(question="execute", input=b"[]")):
        with pytest.raises(InvalidInputError):
            await replica.review.test(ADMIN, Candidate(files=files()), [case])
    with pytest.raises((MalformedError, PackageTooLargeError)):
        await replica.review.test(ADMIN, Candidate(files={"../a.rego": b"package a"}), [])


async def test_the_service_cannot_change_or_remove_bundles_or_their_history(replica):
    for statement in (
        "UPDATE policy_bundles SET version = 9",
        "DELETE FROM policy_bundles",
        "UPDATE policy_activations SET digest = NULL",
        "DELETE FROM policy_activations",
    ):
        async with replica.database.reading() as connection:
            with pytest.raises(Exception, match="permission denied"):
                await connection.execute(text(statement))


async def test_what_was_in_force_too_long_ago_is_asked_for_again(replica, monkeypatch):
    monkeypatch.setattr("control_plane.policy.active.MAX_UNCHECKED", timedelta(0))
    assert replica.active.known() is None
    assert (await replica.execute()).allowed
