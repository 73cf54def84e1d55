"""An independent witness cosigns our growth, refuses a fork, and its refusal stops our signing."""

import asyncio
from datetime import timedelta

import pytest

from control_plane.audit.domain import AuditFilter, EntryOrder
from control_plane.witnesses.domain import Cosignature, Forked, Witness
from shared.checkpoints import parse_checkpoint, verify_cosignatures, verify_log_signature
from shared.errors import NotFoundError
from tests.builders.executions import TENANT
from tests.fixtures.omniwitness import omniwitness
from tests.integration.log.test_log import KEY, ORIGIN
from tests.integration.witnesses.stage import replica

LOGS = {ORIGIN: KEY.public}


def witness_of(running) -> Witness:
    return Witness(url=running.url, key=running.key)


async def test_growth_is_cosigned_and_proofs_lead_to_what_was_witnessed(world, tmp_path):
    with omniwitness(tmp_path, LOGS) as running:
        async with replica(world, [witness_of(running)]) as one:
            await one.witnesses.start()
            for count in (1, 300, 5):
                signed = await one.signed(count)
                assert await one.witnesses.round()
                assert isinstance(one.seen.outcomes[-1], Cosignature), one.seen.outcomes
                published = await one.log.published()
                witnessed = parse_checkpoint(published.witnessed)
                assert verify_log_signature(witnessed, origin=ORIGIN, keys=[KEY.public]) == signed
                assert set(verify_cosignatures(witnessed, {running.name: running.key.public})) == {
                    running.name
                }
            assert one.seen.quorum_size == signed.size
            ahead = await one.signed(1)
            published = await one.log.published()
            assert parse_checkpoint(published.checkpoint).checkpoint == ahead
            assert parse_checkpoint(published.witnessed).checkpoint == signed
            assert one.seen.states[running.name].success_age is not None


async def test_a_witness_that_was_away_is_shown_the_newest_and_one_that_forgot_begins_anew(world, tmp_path):
    async with replica(world, [], quorum=0) as before:
        await before.witnesses.start()
        await before.signed(10)
    with omniwitness(tmp_path, LOGS) as running:
        async with replica(world, [witness_of(running)]) as one:
            await one.witnesses.start()  # asked at the start already
            assert isinstance(one.seen.outcomes[-1], Cosignature)
            await one.signed(10)
            await one.witnesses.round()
    (tmp_path / "witness.example-one.db").unlink()
    with omniwitness(tmp_path, LOGS) as running:
        async with replica(world, [witness_of(running)]) as one:
            await one.witnesses.start()
            await one.signed(10)
            await one.witnesses.round()
            assert [type(outcome) for outcome in one.seen.outcomes] == [Cosignature, Cosignature]


TABLES = ("log_entries", "log_tiles", "log_head", "log_checkpoints")


async def back_up(world) -> None:
    for table in TABLES:
        await world.fetch_none(f"CREATE TABLE saved_{table} AS TABLE {table}")


async def restore(world) -> None:
    """What a restore of an older database does: the newest leaves, and all that is known of witnesses, are gone."""
    await world.fetch_none("TRUNCATE log_cosignatures, log_witnesses, log_pending")
    for table in TABLES:
        await world.fetch_none(f"TRUNCATE {table}")
        await world.fetch_none(f"INSERT INTO {table} TABLE saved_{table}")


OWN_LEAVES = 4
"""Of the world itself, before all others: its node, template, policy and keyset."""


async def forks(world):
    """Return what the audit says of forks."""
    wanted = AuditFilter(action="log.forked")
    return await world.audit.list(TENANT, wanted, order=EntryOrder.NEWEST_FIRST, page_size=9, page_token="")


async def stopped(one) -> str:
    return (await one.log.published()).stopped_by


async def test_rule_16_a_head_behind_what_a_witness_saw_signs_nothing(world, tmp_path):
    with omniwitness(tmp_path, LOGS) as running:
        async with replica(world, [witness_of(running)]) as one:
            await one.witnesses.start()
            await one.signed(10)
            await back_up(world)
            await one.signed(10)
            await one.witnesses.round()
            assert not await stopped(one)
        await restore(world)
        async with replica(world, [witness_of(running)]) as restored:
            await restored.grow(100)
            assert await restored.log.sign() is None  # not before witnesses were asked
            await restored.witnesses.start()
            assert isinstance(restored.seen.outcomes[-1], Forked), restored.seen.outcomes
            assert await restored.log.sign() is None
            assert (
                f"it has seen {OWN_LEAVES + 20} leaves, and we have signed {OWN_LEAVES + 10}"
                in await stopped(restored)
            )
            assert restored.seen.stopped == 1
            [entry] = (await forks(world)).items
            assert (entry.result, entry.subject, entry.actor) == ("LOG_FORKED", ORIGIN, "system")
            await restored.witnesses.round()
            assert len(restored.seen.outcomes) == 1  # it is not asked again
        # Another replica, and one that starts later, sign nothing either.
        async with replica(world, [witness_of(running)]) as other:
            await other.witnesses.start()
            assert await other.log.sign() is None
            found = await forks(world)
            assert len(found.items) == 1
        # Whoever takes the witness out of the settings has decided.
        async with replica(world, [], quorum=0) as decided:
            await decided.witnesses.start()
            assert await decided.log.sign() is not None


async def test_a_fork_that_has_grown_past_what_a_witness_saw_is_refused_by_it(world, tmp_path):
    with omniwitness(tmp_path, LOGS) as running:
        async with replica(world, [witness_of(running)]) as one:
            await one.witnesses.start()
            await one.signed(10)
            await back_up(world)
            await one.signed(10)
            await one.witnesses.round()
        await restore(world)
        # As if nobody had asked at the start: the witness was away.
        async with replica(world, [], quorum=0) as alone:
            await alone.witnesses.start()
            await alone.signed(500)
        async with replica(world, [witness_of(running)]) as forked:
            await forked.witnesses.start()
            assert isinstance(forked.seen.outcomes[-1], Forked), forked.seen.outcomes
            assert f"does not begin our {OWN_LEAVES + 510}" in await stopped(forked)
            await forked.grow(1)
            assert await forked.log.sign() is None


async def test_another_tree_of_the_same_size_is_refused(world, tmp_path):
    with omniwitness(tmp_path, LOGS) as running:
        async with replica(world, [witness_of(running)]) as one:
            await one.witnesses.start()
            await one.signed(10)
            await back_up(world)
            await one.signed(10)
            await one.witnesses.round()
        await restore(world)
        async with replica(world, [], quorum=0) as alone:
            await alone.witnesses.start()
            await alone.signed(10)
        async with replica(world, [witness_of(running)]) as forked:
            await forked.witnesses.start()
            assert isinstance(forked.seen.outcomes[-1], Forked), forked.seen.outcomes


async def test_a_log_that_lost_all_that_it_signed_signs_nothing(world, tmp_path):
    with omniwitness(tmp_path, LOGS) as running:
        async with replica(world, [witness_of(running)]) as one:
            await one.witnesses.start()
            await one.signed(10)
            await one.witnesses.round()
        await world.fetch_none("TRUNCATE log_checkpoints")
        async with replica(world, [witness_of(running)]) as emptied:
            await emptied.witnesses.start()
            with pytest.raises(NotFoundError, match=r"signs none: .* none of ours is signed"):
                await emptied.log.published()
            assert await emptied.log.sign() is None


async def test_a_database_made_anew_with_the_old_keys_is_found_by_its_first_head(world, tmp_path):
    with omniwitness(tmp_path, LOGS) as running:
        async with replica(world, [witness_of(running)]) as one:
            await one.witnesses.start()
            await one.signed(10)
            await one.witnesses.round()
        tables = ", ".join((*TABLES, "log_cosignatures", "log_witnesses"))
        await world.fetch_none(f"TRUNCATE {tables}")
        async with replica(world, [witness_of(running)]) as anew:
            await anew.witnesses.start()
            await anew.signed(3)
            await anew.witnesses.round()
            await anew.grow(1)
            assert await anew.log.sign() is None
            assert f"it has seen {OWN_LEAVES + 10} leaves, and we have signed 3" in await stopped(anew)


async def test_a_quorum_needs_so_many_on_one_checkpoint(world, tmp_path):
    with (
        omniwitness(tmp_path, LOGS) as first,
        omniwitness(tmp_path, LOGS, name="witness.example/two", seed=bytes([2] * 32)) as second,
    ):
        witnesses = [witness_of(first), witness_of(second)]
        async with replica(world, witnesses, quorum=2) as one:
            await one.witnesses.start()
            signed = await one.signed(5)
            await one.witnesses.round()
            witnessed = parse_checkpoint((await one.log.published()).witnessed)
            assert witnessed.checkpoint == signed
            assert len(witnessed.signatures) == 3
            second.process.kill()
            second.process.wait()
            await one.signed(5)
            await one.witnesses.round()
            kept = parse_checkpoint((await one.log.published()).witnessed)
            assert kept.checkpoint == signed  # one of two is no quorum
            assert one.seen.states[second.name].failures == 1
            await one.signed(1)  # and nothing waits for it


async def test_the_newest_quorum_is_found_from_the_end_of_many_cosignatures(world):
    await world.fetch_none(
        f"INSERT INTO log_cosignatures SELECT '{ORIGIN}', size, witness, '', now()"
        " FROM generate_series(1, 100000) size, unnest(array['one', 'two']) witness"
    )
    await world.fetch_none("ANALYZE log_cosignatures")
    plan = await world.fetch(
        "EXPLAIN (ANALYZE, FORMAT TEXT) SELECT tree_size FROM log_cosignatures"
        f" WHERE origin = '{ORIGIN}' AND witness IN ('one', 'two') GROUP BY tree_size HAVING count(*) >= 2"
        " ORDER BY tree_size DESC LIMIT 1"
    )
    assert any("Backward" in line and "pk_log_cosignatures" in line for line in plan), plan
    assert not any("Seq Scan" in line or "Sort" in line for line in plan), plan


async def test_one_replica_asks_at_a_time(world, tmp_path):
    with omniwitness(tmp_path, LOGS) as running:
        every = timedelta(minutes=1)
        async with (
            replica(world, [witness_of(running)], every=every) as one,
            replica(world, [witness_of(running)], every=every) as two,
        ):
            await one.witnesses.start()
            await one.signed(3)
            await world.fetch_none("UPDATE log_witnesses SET round_until = now()")
            asked = await asyncio.gather(one.witnesses.round(), two.witnesses.round())
            assert sorted(asked) == [False, True]


async def test_a_log_whose_tiles_are_not_what_was_signed_signs_nothing(world):
    async with replica(world, [], quorum=0) as one:
        await one.witnesses.start()
        await one.signed(10)
    await world.fetch_none("UPDATE log_tiles SET hashes = overlay(hashes placing '\\x00' from 33 for 1)")
    async with replica(world, [], quorum=0) as altered:
        await altered.witnesses.start()
        assert "is not the one that was signed" in await stopped(altered)
        assert not await altered.log.sign()
    await world.fetch_none("UPDATE log_head SET tree_size = 9")
    async with replica(world, [], quorum=0) as behind:
        await behind.witnesses.start()
        assert f"the log has 9 leaves, and {OWN_LEAVES + 10} were signed" in await stopped(behind)
