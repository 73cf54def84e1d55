"""Erasing: what was read and written is gone for good, what proves that it ran is not, and it is on record who did it."""

import json

import pytest

from control_plane.erasure.service import ErasureService
from control_plane.erasure.store import PostgresErasureStore
from control_plane.policy.domain import Subject
from shared.clock import SystemClock, SystemRandom
from shared.errors import InvalidInputError, NotFoundError, WrongStateError
from tests.builders.executions import OTHER_TENANT, TENANT
from tests.fixtures.execution_worlds import run_at_once, submit

ADMIN = Subject(identity="spiffe://local/caller/ada", tenant_id=TENANT, roles=frozenset({"admin"}))
WHY = "request 4711"


@pytest.fixture
def erasure(world):
    return ErasureService(
        database=world.database,
        store=PostgresErasureStore(),
        audit=world.audit,
        clock=SystemClock(),
        random=SystemRandom(),
    )


async def run(world):
    item = world.build.execution()
    placement = await run_at_once(world, item)
    result = world.build.result(placement)
    await world.leases.finish([result])
    return item.run.execution_id, result


async def erase(erasure, execution_id="", *, caller="", subject=ADMIN, reason=WHY):
    return await erasure.erase(subject, execution_id=execution_id, caller=caller, reason=reason)


async def test_what_an_execution_read_and_wrote_is_gone_and_its_receipt_says_so(world, erasure):
    kept, _ = await run(world)
    gone, result = await run(world)
    before = await world.audit.get_receipt(TENANT, result.receipt_id)
    assert before.erased_at is None

    assert await erase(erasure, gone) == (1, False)

    bodies = (
        "SELECT count(*) FROM bodies b JOIN executions e ON b.body_id IN (e.input_body_id, e.output_body_id)"
    )
    assert await world.fetch(f"{bodies} WHERE execution_id = :e", e=gone) == [0]
    assert await world.fetch(f"{bodies} WHERE execution_id = :e", e=kept) == [2]
    after = await world.audit.get_receipt(TENANT, result.receipt_id)
    assert after.erased_at is not None
    assert (after.envelope, after.order_content) == (before.envelope, before.order_content)
    keys = "SELECT hmac_key || request_hmac FROM idempotency_keys WHERE execution_id = :e"
    assert await world.fetch(keys, e=gone) == [b""]
    assert await world.fetch(keys, e=kept) != [b""]


async def test_the_tombstone_names_who_why_and_which_commitments(world, erasure):
    gone, result = await run(world)
    [commitment] = await world.fetch(
        "SELECT input_commitment FROM executions WHERE execution_id = :e", e=gone
    )
    await erase(erasure, gone)
    [said] = await world.fetch(
        "SELECT actor || ' ' || details::text FROM audit_entries WHERE action = 'execution.erased'"
        " AND subject = :e",
        e=gone,
    )
    actor, _, details = str(said).partition(" ")
    facts = json.loads(details)
    assert actor == ADMIN.identity
    assert facts["reason"] == WHY
    assert (facts["receipt_id"], facts["input_commitment"], facts["bodies"]) == (
        result.receipt_id,
        commitment,
        2,
    )
    assert sorted(facts["removed"].split()) == sorted([commitment, result.output.commitment])


async def test_erasing_again_changes_nothing(world, erasure):
    gone, _ = await run(world)
    assert await erase(erasure, gone) == (1, False)
    assert await erase(erasure, gone) == (0, False)
    assert (await world.actions(gone)).count("execution.erased") == 1


async def test_all_of_a_caller_and_only_what_has_ended(world, erasure):
    ended = [(await run(world))[0] for _ in range(3)]
    [live] = await submit(world, world.build.execution())
    caller = live.run.caller
    assert await erase(erasure, caller=caller) == (3, False)
    assert await erase(erasure, caller=caller) == (0, False)
    for one in ended:
        assert "execution.erased" in await world.actions(one)
    assert "execution.erased" not in await world.actions(live.run.execution_id)
    with pytest.raises(WrongStateError):
        await erase(erasure, live.run.execution_id)


async def test_an_input_that_a_live_execution_reads_stays(world, erasure):
    gone, _ = await run(world)
    [live] = await submit(world, world.build.execution())
    await world.fetch_none(
        "UPDATE executions SET input_body_id = (SELECT input_body_id FROM executions WHERE execution_id ="
        f" '{gone}') WHERE execution_id = '{live.run.execution_id}'"
    )
    with pytest.raises(WrongStateError):
        await erase(erasure, gone)
    assert await erase(erasure, caller=live.run.caller) == (0, False)
    assert "execution.erased" not in await world.actions(gone)


async def test_others_executions_cannot_be_erased(world, erasure):
    gone, _ = await run(world)
    stranger = Subject(identity=ADMIN.identity, tenant_id=OTHER_TENANT, roles=ADMIN.roles)
    with pytest.raises(NotFoundError):
        await erase(erasure, gone, subject=stranger)
    with pytest.raises(NotFoundError):
        await erase(erasure, "exe_0190f5ac-0000-7000-8000-000000000000")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"execution_id": "exe_0190f5ac-0000-7000-8000-000000000000", "caller": "ann"},
        {"caller": "ann", "reason": " "},
        {"execution_id": "exe_1"},
    ],
    ids=["nothing", "both", "no reason", "no id"],
)
async def test_what_is_erased_is_named_in_one_way_and_with_a_reason(erasure, wrong):
    with pytest.raises(InvalidInputError):
        await erase(erasure, **wrong)
