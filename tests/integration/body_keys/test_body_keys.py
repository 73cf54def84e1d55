"""Bodies that are encrypted, in a real Postgres: what is stored, what is read, and what is lost with its key."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from control_plane.body_keys.administration import BodyKeyAdministration
from control_plane.body_keys.files import FileWrapping
from control_plane.body_keys.sealing import SEGMENT_BYTES
from control_plane.body_keys.service import BodyKeyring
from control_plane.body_keys.store import PostgresBodyKeyStore
from control_plane.executions.domain import BodyKind, Disposition, UploadQuota
from shared.clock import SystemClock, SystemRandom
from shared.errors import InvalidInputError, KeyUnavailableError, NotFoundError, WrongStateError
from tests.builders.executions import OTHER_TENANT, TENANT
from tests.fixtures.execution_worlds import PostgresWorld, claim, postgres_world, run_at_once, submit

ADA = "spiffe://test/caller/ada"
WHY = "request 4711"
SECRET = b"the patient's name"
QUOTA = UploadQuota(owner=ADA, max_bodies=9, max_bytes=1 << 20)


@dataclass
class Sealed:
    """A world whose default tenant encrypts; the other one does not."""

    world: PostgresWorld
    keyring: BodyKeyring
    keys: BodyKeyAdministration
    wrapping: FileWrapping

    async def execution(self, content=SECRET, *, tenant=TENANT):
        body = await self.world.store.protect(tenant, self.world.build.body(content))
        return self.world.build.execution(tenant=tenant, body=body)

    async def run(self, content=SECRET, output=SECRET, *, tenant=TENANT):
        """Run one to its end; returns it and its result."""
        item = await self.execution(content, tenant=tenant)
        placement = await run_at_once(self.world, item)
        result = self.world.build.result(
            placement, output=self.world.build.body(output), log=self.world.build.body(b"log of " + output)
        )
        [sealed] = await self.world.leases.protect_results([result])
        [finished] = await self.world.leases.finish([sealed])
        assert finished.disposition is Disposition.ACCEPTED
        return item.run, result, finished

    async def stored(self, execution_id):
        return await self.world.fetch(
            "SELECT b.content FROM bodies b JOIN executions e ON b.body_id IN"
            " (e.input_body_id, e.output_body_id, e.log_body_id) WHERE e.execution_id = :e",
            e=execution_id,
        )

    async def read(self, body, *, offset=0, most=1 << 24, tenant=TENANT):
        return await self.world.store.read_body(tenant, body.body_id, offset_bytes=offset, max_bytes=most)

    async def encrypt(self, value: str) -> None:
        await self.world.fetch_none(
            f"UPDATE tenants SET encrypt_bodies = {value} WHERE tenant_id = 'default'"
        )
        await self.keys.noticed()


@pytest.fixture
async def sealed(postgres_server, database_name, tmp_path):
    clock, random = SystemClock(), SystemRandom()
    wrapping = FileWrapping(tmp_path / "keys")
    made: list[Any] = []

    def sealed_by(database):
        store = PostgresBodyKeyStore(database)
        made.append(store)
        keyring = BodyKeyring(
            store=store, wrapping=wrapping, clock=clock, random=random, life=timedelta(minutes=5)
        )
        made.append(keyring)
        return keyring

    async with postgres_world(postgres_server, database_name, sealed_by=sealed_by) as world:
        store, keyring = made
        keys = BodyKeyAdministration(
            database=world.database,
            store=store,
            wrapping=wrapping,
            keyring=keyring,
            audit=world.audit,
            clock=clock,
            random=random,
        )
        opened = Sealed(world, keyring, keys, wrapping)
        await keys.ensure(TENANT, actor=ADA)
        await opened.encrypt("true")
        yield opened


async def test_nothing_of_a_body_is_in_postgres_and_all_of_it_is_read_as_before(sealed):
    run, result, finished = await sealed.run()
    contents = await sealed.stored(run.execution_id)
    assert len(contents) == 3
    assert not any(SECRET in content for content in contents)
    assert finished.execution.output == SECRET
    found = await sealed.world.store.get(TENANT, run.execution_id)
    assert found.output == SECRET
    assert found.input_commitment == run.input.commitment  # of the plain bytes
    assert found.output_commitment == result.output.commitment
    for kind, content in (
        (BodyKind.INPUT, SECRET),
        (BodyKind.OUTPUT, SECRET),
        (BodyKind.LOG, b"log of " + SECRET),
    ):
        body = await sealed.world.store.body_of(TENANT, run.execution_id, kind)
        assert body.size_bytes == len(content)
        assert await sealed.read(body) == content


async def test_a_claim_hands_the_plain_input_out(sealed):
    item = await sealed.execution()
    await submit(sealed.world, item)
    claimed = await claim(sealed.world)
    assert claimed.executions[0].run.input.content == SECRET


async def test_a_claim_passes_over_what_has_no_key_in_memory_and_takes_the_others(sealed):
    locked, plain = await sealed.execution(), await sealed.execution(tenant=OTHER_TENANT)
    await submit(sealed.world, locked, plain)
    sealed.keyring.forget(TENANT)
    claimed = await claim(sealed.world)
    assert [one.run.execution_id for one in claimed.executions] == [plain.run.execution_id]
    assert not claimed.queue_empty
    await sealed.keyring.look()  # the loop does, at once
    sealed.world.leases._locked._locked.clear()  # a second later
    claimed = await claim(sealed.world)
    assert [one.run.execution_id for one in claimed.executions] == [locked.run.execution_id]


async def test_pieces_of_a_large_body_are_read_without_the_rest(sealed):
    content = bytes(n % 251 for n in range(3 * SEGMENT_BYTES + 5))
    body = sealed.world.build.body(content)
    await sealed.world.store.add_body(TENANT, body, quota=QUOTA)
    [stored] = await sealed.world.fetch("SELECT content FROM bodies WHERE body_id = :b", b=body.body_id)
    assert len(stored) > len(content)
    for offset, most in ((0, 10), (SEGMENT_BYTES - 3, 6), (5, 2 * SEGMENT_BYTES), (len(content) - 2, 100)):
        assert await sealed.read(body, offset=offset, most=most) == content[offset : offset + most]
    assert await sealed.read(body, offset=len(content)) == b""
    assert await sealed.read(body, offset=10 * SEGMENT_BYTES) == b""


async def test_empty_bodies_are_sealed_too(sealed):
    run, _, _ = await sealed.run(b"", b"")
    assert all(len(content) > 0 for content in await sealed.stored(run.execution_id))
    assert (await sealed.world.store.get(TENANT, run.execution_id)).output == b""


async def test_a_tenant_that_does_not_encrypt_stores_what_it_always_did(sealed):
    run, _, _ = await sealed.run(tenant=OTHER_TENANT)
    assert SECRET in await sealed.stored(run.execution_id)


async def test_bodies_of_before_and_after_stay_readable(sealed):
    await sealed.encrypt("false")
    before, _, _ = await sealed.run()
    await sealed.encrypt("true")
    during, _, _ = await sealed.run()
    await sealed.encrypt("false")
    for run in (before, during):
        assert (await sealed.world.store.get(TENANT, run.execution_id)).output == SECRET
    assert SECRET in await sealed.stored(before.execution_id)
    assert SECRET not in await sealed.stored(during.execution_id)


async def test_a_plain_body_that_looks_sealed_is_plain(sealed):
    """Whoever writes an input cannot make it pass for a sealed one."""
    looks = (await sealed.execution()).run.input.sealed
    run, _, _ = await sealed.run(looks, looks, tenant=OTHER_TENANT)
    assert (await sealed.world.store.get(OTHER_TENANT, run.execution_id)).output == looks


async def test_new_bodies_are_sealed_with_the_newest_key_and_the_older_opens_its_own(sealed):
    old, _, _ = await sealed.run()
    key_id = await sealed.keys.rotate(TENANT, actor=ADA)
    new, _, _ = await sealed.run()
    assert all(key_id.encode() in content for content in await sealed.stored(new.execution_id))
    assert not any(key_id.encode() in content for content in await sealed.stored(old.execution_id))
    sealed.keyring.forget(TENANT)
    for run in (old, new):
        assert (await sealed.world.store.get(TENANT, run.execution_id)).output == SECRET
    assert await sealed.world.actions(TENANT) == ["tenant.body_key_made"] * 2


async def test_destroyed_keys_erase_all_they_sealed_on_record(sealed, tmp_path):
    plain, _, _ = await sealed.run(tenant=OTHER_TENANT)
    gone, result, _ = await sealed.run()
    await sealed.keys.rotate(TENANT, actor=ADA)
    assert (await sealed.world.audit.get_receipt(TENANT, result.receipt_id)).erased_at is None

    assert await sealed.keys.erase(TENANT, actor=ADA, reason=WHY) == 2

    assert (await sealed.world.store.get(TENANT, gone.execution_id)).output is None
    for kind in (BodyKind.INPUT, BodyKind.OUTPUT):
        with pytest.raises(NotFoundError, match="erased"):
            await sealed.world.store.body_of(TENANT, gone.execution_id, kind)
    with pytest.raises(NotFoundError, match="erased"):
        await sealed.read(gone.input)
    evidence = await sealed.world.audit.get_receipt(TENANT, result.receipt_id)
    assert evidence.erased_at is not None
    assert evidence.envelope == result.envelope
    assert await sealed.world.actions(TENANT) == [*["tenant.body_key_made"] * 2, "tenant.body_keys_erased"]
    [details] = await sealed.world.fetch(
        "SELECT details FROM audit_entries WHERE action = 'tenant.body_keys_erased'"
    )
    assert details["reason"] == WHY
    assert await sealed.world.fetch("SELECT DISTINCT wrapped FROM body_keys") == [b""]
    assert list((tmp_path / "keys").iterdir()) == []
    assert (await sealed.world.store.get(OTHER_TENANT, plain.execution_id)).output == SECRET


async def test_a_wrapped_key_of_a_backup_opens_nothing_after_that(sealed):
    [(key_id, wrapped)] = [
        (row.split("|")[0], bytes.fromhex(row.split("|")[1]))
        for row in await sealed.world.fetch(
            "SELECT body_key_id || '|' || encode(wrapped, 'hex') FROM body_keys"
        )
    ]
    assert await sealed.wrapping.unwrap("body-default-0", key_id, wrapped)
    await sealed.keys.erase(TENANT, actor=ADA, reason=WHY)
    await sealed.keys.rotate(TENANT, actor=ADA)
    with pytest.raises(KeyUnavailableError):
        await sealed.wrapping.unwrap("body-default-0", key_id, wrapped)


async def test_after_an_erasure_inputs_are_refused_until_there_is_a_new_key(sealed):
    await sealed.keys.erase(TENANT, actor=ADA, reason=WHY)
    with pytest.raises(KeyUnavailableError, match="erased") as refused:
        await sealed.execution()
    assert "rotate-key" in refused.value.hint
    await sealed.keys.rotate(TENANT, actor=ADA)
    run, _, _ = await sealed.run()
    assert (await sealed.world.store.get(TENANT, run.execution_id)).output == SECRET
    assert await sealed.keys.erase(TENANT, actor=ADA, reason=WHY) == 1


async def test_keys_are_not_erased_under_what_runs_nor_without_a_reason(sealed):
    item = await sealed.execution()
    await submit(sealed.world, item)
    with pytest.raises(WrongStateError, match="have not ended"):
        await sealed.keys.erase(TENANT, actor=ADA, reason=WHY)
    with pytest.raises(InvalidInputError, match="reason"):
        await sealed.keys.erase(TENANT, actor=ADA, reason=" ")


async def test_an_erasure_whose_custodian_cannot_says_so_and_a_repeat_ends_it(sealed, tmp_path):
    file, aside = tmp_path / "keys" / "body-default-0.key", tmp_path / "aside"
    file.rename(aside)
    file.mkdir()  # nobody can unlink that
    with pytest.raises(KeyUnavailableError, match="the database forgot the keys") as said:
        await sealed.keys.erase(TENANT, actor=ADA, reason=WHY)
    assert "repeat" in said.value.hint
    file.rmdir()
    aside.rename(file)
    assert await sealed.keys.erase(TENANT, actor=ADA, reason=WHY) == 0
    assert list((tmp_path / "keys").iterdir()) == []


async def test_a_result_without_a_key_is_left_with_its_node(sealed):
    item = await sealed.execution()
    placement = await run_at_once(sealed.world, item)
    other = await sealed.execution(tenant=OTHER_TENANT)
    other_placement = await run_at_once(sealed.world, other)
    results = [sealed.world.build.result(one) for one in (placement, other_placement)]
    sealed.keyring.forget(TENANT)
    await sealed.wrapping.destroy("body-default-0")
    assert await sealed.world.leases.protect_results(results) == [results[1]]
