"""Rule 19: what a use case that asks for the wrong tenant gets within a call. The stores, as they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from control_plane.agents.store import PostgresAgentStore
from control_plane.audit.domain import AuditFilter, EntryOrder, NewAuditEntry
from control_plane.executions.domain import BodyKind
from shared.errors import NotFoundError
from shared.ids import AUDIT_ENTRY, new_id
from shared.rpc import identity
from shared.rpc.identity import Admission, Caller, set_admitted
from tests.builders.executions import OTHER_TENANT, TENANT
from tests.fixtures.execution_worlds import submit as submit_items


async def submit(world, tenant=TENANT):
    (item,) = await submit_items(world, world.build.execution(tenant=tenant))
    return item.run.execution_id


@contextmanager
def called_by(tenant, *, beyond=False) -> Iterator[None]:
    """What the interceptor does around a call."""
    before = identity._confined_to.get()
    caller = Caller(identity="x", kind="caller", name="x", tenant_id=tenant, roles=frozenset())
    set_admitted(Admission(caller=caller, deadline=timedelta(minutes=1), beyond_tenant=beyond))
    try:
        yield
    finally:
        identity._confined_to.set(before)


def entry(world, tenant, subject):
    return NewAuditEntry(
        audit_entry_id=new_id(AUDIT_ENTRY, world.build.clock, world.build.random),
        tenant_id=tenant,
        actor="test",
        action="execution.cancel_requested",
        subject=subject,
    )


async def _listed(world, tenant):
    page = await world.store.list(tenant, agent_name="", states=(), page_size=10, page_token="")
    return [one.execution_id for one in page.items]


async def _audited(world, tenant):
    page = await world.audit.list(
        tenant, AuditFilter(), order=EntryOrder.NEWEST_FIRST, page_size=10, page_token=""
    )
    return page.items


async def _agents(world, tenant):
    async with world.database.transaction() as tx:
        return await PostgresAgentStore().list(tx, tenant, after="", limit=10)


async def test_a_call_gets_nothing_of_another_tenant_even_where_it_is_asked_for(world):
    mine = await submit(world)
    theirs = await submit(world, tenant=OTHER_TENANT)
    with called_by(TENANT):
        assert await _listed(world, TENANT) == [mine]
        assert await _listed(world, OTHER_TENANT) == []
        assert await _audited(world, TENANT)
        assert not await _audited(world, OTHER_TENANT)
        assert await _agents(world, TENANT)
        assert not await _agents(world, OTHER_TENANT)
        assert set(await world.store.states_of([mine, theirs])) == {mine}
        for read in (
            world.store.get(OTHER_TENANT, theirs),
            world.store.body_of(OTHER_TENANT, theirs, BodyKind.INPUT),
            world.store.request_cancel(OTHER_TENANT, theirs, entry(world, OTHER_TENANT, theirs)),
        ):
            with pytest.raises(NotFoundError):
                await read
    assert set(await world.store.states_of([mine, theirs])) == {mine, theirs}


async def test_a_call_that_reaches_further_sees_both(world):
    mine = await submit(world)
    theirs = await submit(world, tenant=OTHER_TENANT)
    with called_by(TENANT, beyond=True):
        assert set(await world.store.states_of([mine, theirs])) == {mine, theirs}


async def test_a_call_cannot_write_into_the_log_of_another_tenant(world):
    with called_by(TENANT):
        with pytest.raises(Exception, match="row-level security"):
            await world.audit.record([entry(world, OTHER_TENANT, "forged")])
        await world.audit.record([entry(world, TENANT, "own")])


async def test_whether_a_node_is_there_is_known_to_tenants_whose_it_is_not(world):
    mine = await submit(world)
    with called_by(TENANT):
        waiting = await world.store.get(TENANT, mine)
    outside = await world.store.get(TENANT, mine)
    assert waiting.pending_reason == outside.pending_reason
