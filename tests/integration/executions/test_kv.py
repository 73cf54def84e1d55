"""What only a real Postgres can show of kv: runs that end at the same time on two replicas, deletion, crashes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from control_plane.executions.domain import Disposition
from control_plane.executions.lease_store import PostgresLeaseStore
from control_plane.kv.domain import KvQuota, KvWrite
from control_plane.kv.settlement import KvSettlement
from shared.clock import SystemClock, SystemRandom
from shared.errors import DatabaseUnavailableError
from shared.ids import ReceiptId
from shared.manifest import Capabilities
from tests.builders.executions import AGENT, TENANT
from tests.fixtures.execution_worlds import KV_QUOTA, PostgresWorld, run_at_once

BOUND_SECONDS = 60.0
KV = Capabilities(kv=True)


def replica_of(world: PostgresWorld, quota: KvQuota) -> PostgresLeaseStore:
    return PostgresLeaseStore(
        world.database,
        executions=world.store,
        audit=world.audit,
        clock=SystemClock(),
        random=SystemRandom(),
        kv_quota=quota,
    )


@pytest.fixture
async def replicas(world: PostgresWorld) -> AsyncIterator[list[PostgresLeaseStore]]:
    """Two more replicas with room for many keys."""
    made = [replica_of(world, KvQuota(max_keys=20, max_bytes=100_000)) for _ in range(2)]
    yield made
    for one in made:
        await one.close()


async def result_of(world, **values):
    placement = await run_at_once(world, world.build.execution(capabilities=KV))
    writes = tuple(KvWrite(key=key, value=value) for key, value in sorted(values.items()))
    return world.build.result(placement, kv_writes=writes)


async def sums(world) -> tuple[object, object]:
    """What the agent's row says, and what is there."""
    said = await world.fetch("SELECT kv_keys || ' ' || kv_bytes FROM agents WHERE agent_id = :a", a=AGENT)
    there = await world.fetch(
        "SELECT count(*) || ' ' || coalesce(sum(octet_length(key) + octet_length(value)), 0)"
        " FROM kv_entries WHERE tenant_id = :t AND agent_id = :a",
        t=TENANT,
        a=AGENT,
    )
    return said[0], there[0]


async def test_replicas_that_end_runs_of_one_agent_at_once_never_pass_its_quota(world, replicas):
    results = [await result_of(world, **{f"k{n}": b"x" * n, "shared": b"y" * n}) for n in range(40)]

    async with asyncio.timeout(BOUND_SECONDS):
        finished = await asyncio.gather(*(replicas[n % 2].finish([one]) for n, one in enumerate(results)))

    states = [one.execution.state for (one,) in finished]
    said, there = await sums(world)
    assert (states.count("succeeded"), states.count("killed")) == (19, 21)
    assert said == there
    assert str(said).startswith("20 ")


async def test_two_replicas_that_record_the_same_receipt_write_once(world, replicas):
    result = await result_of(world, n=b"1")
    again = [result, replace(result, receipt_id=ReceiptId("rcp_other"))]
    async with asyncio.timeout(BOUND_SECONDS):
        answers = await asyncio.gather(
            *(one.finish([each]) for one, each in zip(replicas, again, strict=True))
        )
    assert sorted(one.disposition for (one,) in answers) == [Disposition.ACCEPTED, Disposition.DUPLICATE]
    assert await sums(world) == ("1 2", "1 2")


async def test_groups_of_many_agents_and_runs_wait_in_no_circle(world, replicas):
    groups = [[await result_of(world, **{f"k{n}": b"x"}) for n in range(10)] for _ in range(4)]
    groups[1].reverse()
    async with asyncio.timeout(BOUND_SECONDS):
        finished = await asyncio.gather(*(replicas[n % 2].finish(group) for n, group in enumerate(groups)))
    assert all(one.execution.state == "succeeded" for group in finished for one in group)
    assert (await sums(world))[0] == "10 30"


async def test_an_agent_that_is_deleted_while_a_run_ends_keeps_nothing(world, replicas):
    result = await result_of(world, n=b"1")
    async with asyncio.timeout(BOUND_SECONDS):
        async with world.database.transaction() as tx:
            await tx.connection.exec_driver_sql("UPDATE agents SET deleted_at = now()")
            ending = asyncio.ensure_future(replicas[0].finish([result]))
            await asyncio.sleep(0.2)
            assert not ending.done(), "it waits for the agent's row"
            await world.kv.remove_all(tx, TENANT, AGENT)
        (finished,) = await ending
    assert finished.execution.state == "succeeded"
    assert await world.fetch("SELECT key FROM kv_entries") == []


async def test_what_fails_after_the_result_is_recorded_takes_the_result_back(world, monkeypatch):
    """A crash between the two is the same: they are one transaction."""
    result = await result_of(world, n=b"1")
    write = KvSettlement.write

    async def crash(*_: object) -> None:
        raise DatabaseUnavailableError("gone")

    monkeypatch.setattr(KvSettlement, "write", crash)
    with pytest.raises(DatabaseUnavailableError):
        await world.leases.finish([result])
    assert (await world.store.get(TENANT, result.execution_id)).state == "pending"
    assert await world.fetch("SELECT 1 FROM receipts") == []

    monkeypatch.setattr(KvSettlement, "write", write)
    (finished,) = await world.leases.finish([result])
    assert finished.execution.state == "succeeded"
    assert await sums(world) == ("1 2", "1 2")


async def test_a_quota_that_was_lowered_lets_a_run_make_less_of_it(world, replicas):
    (first,) = await replicas[0].finish([await result_of(world, **{f"k{n}": b"x" for n in range(10)})])
    assert first.execution.state == "succeeded"
    assert KV_QUOTA.max_keys < 10

    (less,) = await world.leases.finish([await result_of(world, k0=None, k1=b"y")])
    (more,) = await world.leases.finish([await result_of(world, new=b"y")])

    assert (less.execution.state, more.execution.state) == ("succeeded", "killed")
    assert (await sums(world))[0] == (await sums(world))[1] == "9 27"
