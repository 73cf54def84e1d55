"""Workers whose code was loaded on the word of a compiler key: bound to it, and ended with it."""

import asyncio

import pytest

from data_plane.sandbox.domain import RunRequest
from shared.digests import sha256_digest
from shared.errors import WorkerCrashedError
from shared.limits import Limits
from tests.integration.sandbox.conftest import TENANT

BOUND = 30.0


@pytest.fixture
async def start(pool, artifacts, probe):
    path = await artifacts.of(probe)

    def started(vouched_by, *args):
        return asyncio.create_task(
            pool.run(
                tenant_id=TENANT,
                module_digest=sha256_digest(probe),
                artifact=artifacts.opener(path),
                request=RunRequest(args=("probe", *args), limits=Limits(wall_ms=20_000, cpu_ms=20_000)),
                vouched_by=vouched_by,
            )
        )

    return started


async def test_a_worker_serves_one_voucher_for_its_life(start, artifacts):
    for vouched_by in ("", "one", "two", "", "one", "two"):
        assert (await start(vouched_by, "echo")).exit_code == 0

    assert artifacts.opened == 3


async def test_idle_workers_end_with_their_key_and_no_others(start, pool, artifacts):
    for vouched_by in ("", "one", "two"):
        await start(vouched_by, "echo")

    pool.retire({"one"})

    assert pool.stats().warm == 2
    for vouched_by in ("", "two", "one"):
        await start(vouched_by, "echo")
    assert artifacts.opened == 4


async def test_runs_end_with_their_key_and_no_others(start, pool, artifacts):
    doomed, other = start("one", "spin"), start("", "spin")
    async with asyncio.timeout(BOUND):
        while pool.stats().busy < 2 or artifacts.opened < 2:
            await asyncio.sleep(0)

    pool.retire({"one"})

    with pytest.raises(WorkerCrashedError):
        async with asyncio.timeout(BOUND):
            await doomed
    assert not other.done()
    assert pool.stats().busy == 1
    other.cancel()
    await asyncio.wait({other})
    assert pool.stats().warm == 0
