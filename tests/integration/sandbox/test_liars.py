"""Workers that lie, or break the protocol half way: the node names it, ends them in time, and goes on."""

import asyncio
import os
import time
from datetime import timedelta

import pytest
from agentfactory_engine import worker_path

from data_plane.sandbox import look
from data_plane.sandbox.domain import Layer, RunRequest
from data_plane.sandbox.pool import WorkerPool
from data_plane.sandbox.process import MAX_STDERR_BYTES
from shared.digests import sha256_digest
from shared.errors import WorkerCrashedError
from shared.ids import TenantId
from shared.limits import Limits
from shared.outcomes import LimitName, Outcome
from tests.fakes.liar import HONEST, Liar
from tests.integration.sandbox.conftest import TENANT

GRACE = timedelta(milliseconds=200)
WALL_MS = 1_000
PATIENCE_SECONDS = 30.0
BOUND_SECONDS = 15.0
"""Loading, wall limit, grace and a kill a second later take 4 s; the rest is for a busy machine."""


@pytest.fixture
def liar(tmp_path):
    return Liar(tmp_path, worker_path())


@pytest.fixture
async def liars(liar, engine, monkeypatch):
    """A pool whose workers lie when they are told to."""
    monkeypatch.setattr("data_plane.sandbox.worker.LOAD_TIMEOUT", timedelta(seconds=2))
    async with WorkerPool(
        worker_path=str(liar.path),
        engine=engine,
        slots=2,
        spares=0,
        wall_grace=GRACE,
        idle_look=timedelta(milliseconds=200),
    ) as pool:
        yield pool


@pytest.fixture
def lie(liars, liar, artifacts, probe):
    """Run once, lied to in this way."""

    async def run_once(behaviour, *args, wall_ms=WALL_MS, stdin=b""):
        liar.behave(behaviour)
        return await liars.run(
            tenant_id=TENANT,
            module_digest=sha256_digest(probe),
            artifact=artifacts.opener(await artifacts.of(probe)),
            request=RunRequest(
                args=("probe", *(args or ("hello",))), stdin=stdin, limits=Limits(wall_ms=wall_ms)
            ),
        )

    return run_once


async def _healthy(lie, liars):
    """No slot is taken, no process is left, and an honest run succeeds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while liars._ending:
            await asyncio.sleep(0.01)
        result = await lie(HONEST, wall_ms=10_000)
    assert (result.outcome, result.stdout) == (Outcome.SUCCEEDED, b"hello\n")
    assert liars.stats().busy == 0


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("claims memory", "claims peak_memory_bytes of 1099511627776, memory_bytes is"),
        ("claims output", "claims output_bytes of 1099511627776"),
        ("claims output that never came", "claims 5 bytes of output, and 0 came"),
        ("claims files", "claims scratch_inodes of 1, scratch_inodes is 0"),
        ("claims time", "claims wall of 1:00:00"),
        ("claims calls", "claims host_calls"),
        ("makes more calls than it may", "passed on 1001 host calls"),
        ("counts no calls", "claims 0 host calls of 0 bytes, and 1 of"),
        ("names no limit", "outcome that is none"),
        ("names an unknown limit", "patience"),
        ("names a limit of a success", "outcome that is none"),
        ("names no trap", "outcome that is none"),
        ("says two outcomes at once", "frame OUTCOME where it was not due"),
        ("refuses an answer after another limit", "frame OUTCOME where it was not due"),
        ("is ready twice", "frame READY where it was not due"),
        ("speaks before it is ready", "frame OUTPUT where it was not due"),
        ("sends a frame of 4 GiB", "frame of 4294967295 bytes"),
        ("sends an unknown frame", "unknown type 77"),
        ("sends an unknown stream", "unknown stream"),
        ("claims layers", "claims no_new_privs, seccomp, and the kernel knows nothing of it"),
        ("claims an unknown layer", "names no layers"),
        ("floods output", "sent more than"),
        ("reads nothing", "SIGKILL"),
        # What it has not read may make the kernel drop what it said.
        ("closes half way", "closed inside a frame|was killed by"),
        ("leaves without a word", "ended with code 0|was killed by"),
    ],
)
async def test_a_lie_is_a_crash_in_time_and_the_node_goes_on(lie, liars, behaviour, said):
    started = time.monotonic()
    with pytest.raises(WorkerCrashedError, match=said):
        await lie(behaviour, stdin=bytes(8 << 20))
    assert time.monotonic() - started < BOUND_SECONDS
    assert (liars.stats().crashed, liars.stats().discarded, liars.stats().warm) == (1, 1, 0)
    await _healthy(lie, liars)


@pytest.mark.parametrize(
    "behaviour",
    ["succeeds after it was killed", "reads nothing and is ready", "sends half an outcome and waits"],
)
async def test_whoever_is_past_its_wall_limit_was_killed_whatever_it_says(lie, liars, behaviour):
    started = time.monotonic()
    result = await lie(behaviour, stdin=bytes(8 << 20))
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.WALL_MS)
    assert time.monotonic() - started < BOUND_SECONDS
    await _healthy(lie, liars)


async def test_answer_that_came_after_host_call_ms_does_not_hide_that_limit(lie, liars):
    result = await lie("refuses an answer that came too late")
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.HOST_CALL_MS)
    assert liars.stats().warm == 0
    await _healthy(lie, liars)


@pytest.mark.parametrize(
    "behaviour",
    [
        "says an outcome for the next run",
        "says output for the next run",
        "says half a frame for the next run",
        "works on after its outcome",
    ],
)
async def test_what_comes_after_an_outcome_ends_the_worker_and_reaches_no_other_run(lie, liars, behaviour):
    assert (await lie(behaviour)).outcome is Outcome.SUCCEEDED
    async with asyncio.timeout(PATIENCE_SECONDS):
        while liars.stats().warm:
            await asyncio.sleep(0.01)
    assert liars.stats().discarded == 1
    await _healthy(lie, liars)
    assert liars.stats().warm_hits == 0


async def test_a_worker_that_spoke_after_its_outcome_is_not_used_even_before_anybody_looked(lie, liars):
    liars._watch.cancel()
    await lie("says an outcome for the next run")
    (worker,) = next(iter(liars._idle.values()))
    async with asyncio.timeout(BOUND_SECONDS):
        while worker.is_reusable:
            await asyncio.sleep(0.01)
    await _healthy(lie, liars)
    assert liars.stats().warm_hits == 0


async def test_honest_workers_and_spares_are_left_alone_however_often_they_are_looked_at(
    engine, artifacts, probe
):
    async with WorkerPool(
        worker_path=worker_path(), engine=engine, slots=2, spares=2, idle_look=timedelta(milliseconds=1)
    ) as pool:
        for tenant in ("a", "b", "a", "b", "c"):
            result = await pool.run(
                tenant_id=TenantId(tenant),
                module_digest=sha256_digest(probe),
                artifact=artifacts.opener(await artifacts.of(probe)),
                request=RunRequest(args=("probe", "hello")),
            )
            assert result.outcome is Outcome.SUCCEEDED
            await asyncio.sleep(0.1)
        assert (pool.stats().discarded, pool.stats().warm_hits) == (0, 2)


async def test_last_words_cannot_fill_the_nodes_memory(lie):
    result = await lie("floods stderr", wall_ms=5_000)
    assert int(result.stdout) <= MAX_STDERR_BYTES


async def test_a_demanded_layer_that_a_worker_does_not_even_claim_is_missed(liar, engine, artifacts, probe):
    liar.behave("claims no layer")
    async with WorkerPool(
        worker_path=str(liar.path), engine=engine, slots=1, spares=0, require=[Layer.SECCOMP]
    ) as pool:
        with pytest.raises(WorkerCrashedError, match="without seccomp, which is demanded"):
            await pool.run(
                tenant_id=TENANT,
                module_digest=sha256_digest(probe),
                artifact=artifacts.opener(await artifacts.of(probe)),
                request=RunRequest(args=("probe", "hello")),
            )


async def test_a_run_in_another_slot_notices_nothing(lie, liars):
    honest = asyncio.create_task(lie(HONEST, "sleep", "3", wall_ms=20_000))
    async with asyncio.timeout(BOUND_SECONDS):
        while not (liars._busy and next(iter(liars._busy)).is_loaded):
            await asyncio.sleep(0.01)
    for behaviour in ("sends a frame of 4 GiB", "floods output", "leaves without a word"):
        with pytest.raises(WorkerCrashedError):
            await lie(behaviour)
    assert (await honest).outcome is Outcome.SUCCEEDED


def test_of_an_unjailed_process_no_layer_is_seen():
    """This very process: it has not locked itself, so whoever claims it has would be found out."""
    seen = look.layers_seen(os.getpid())
    assert seen[Layer.SECCOMP] is False
    assert seen[Layer.NAMESPACES] is False
    assert seen[Layer.RLIMITS] is False
    assert look.layers_seen(2**22 + 1) is None
