"""Agents: names that are taken and freed, parameters that fit, revisions that do not get lost."""

import asyncio

import pytest

from control_plane.agents.service import AgentUpdate
from control_plane.templates.domain import TemplateRef
from shared.digests import sha256_digest
from shared.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    PolicyDeniedError,
    TemplateRetiredError,
    TemplateRevokedError,
)
from shared.ids import TenantId
from shared.limits import RequestedLimits
from tests.integration.control_plane.registry import ADMIN, AUTHOR, CALLER, TENANT, package

REF = TemplateRef(name="probe", version="1.0.0")
NEXT = TemplateRef(name="probe", version="1.1.0")


@pytest.fixture
async def published(registry):
    await registry.publish(await package(limits=RequestedLimits(wall_ms=500)))
    await registry.publish(await package(version="1.1.0"))
    return registry


async def create(registry, *, name="prober", template=REF, parameters=b"{}", subject=AUTHOR):
    return await registry.agents.create(subject, name=name, template=template, parameters=parameters)


def change(agent, *, template=None, parameters=None, revision=None):
    return AgentUpdate(
        name=agent.name, revision=revision or agent.revision, template=template, parameters=parameters
    )


async def test_an_agent_keeps_its_parameters_as_canonical_json(published):
    agent = await create(published, parameters=b'{ "depth" : 3 }')
    assert agent.parameters == b'{"depth":3}'
    assert (await published.agents.get(TENANT, "prober")).parameters == agent.parameters


async def test_creating_is_recorded_with_its_decision(published):
    agent = await create(published)
    assert ("agent.created", agent.agent_id, "ok") in await published.audit()
    assert ("create_agent",) in await published.rows("SELECT question FROM decisions")


async def test_a_deleted_agent_takes_what_it_keeps_along_on_record(published):
    agent, other = await create(published), await create(published, name="other")
    for one, key in ((agent, "a"), (agent, "b"), (other, "a")):
        await published.run(
            "INSERT INTO kv_entries (tenant_id, agent_id, key, value, size_bytes, written_by)"
            f" VALUES ('{TENANT}', '{one.agent_id}', '{key}', '', 1, 'exe_1')"
        )

    await published.agents.delete(AUTHOR, "prober")

    assert await published.rows("SELECT agent_id FROM kv_entries") == [(other.agent_id,)]
    assert await published.rows(
        "SELECT details->>'kv_keys' FROM audit_entries WHERE action = 'agent.deleted'"
    ) == [("2",)]


async def test_the_same_content_again_is_the_same_agent(published):
    first = await create(published)
    assert (await create(published)).agent_id == first.agent_id


async def test_the_same_name_twice_at_once_makes_one_agent(published):
    answers = await asyncio.gather(*(create(published) for _ in range(4)))
    assert len({answer.agent_id for answer in answers}) == 1


async def test_other_content_under_a_taken_name_is_refused(published):
    await create(published)
    with pytest.raises(AlreadyExistsError):
        await create(published, parameters=b'{"depth":1}')


@pytest.mark.parametrize(
    "parameters",
    [
        b"[]",
        b"not json",
        b'{"depth":"three"}',
        b'{"width":1}',
        b'{"depth":1,"depth":2}',
        b'{"depth":NaN}',
        b"{" * 1000,
        b'{"depth":1}' + b" " * 65_536,
    ],
    ids=["array", "garbage", "wrong type", "unknown", "duplicate key", "nan", "deep", "large"],
)
async def test_parameters_that_do_not_fit_are_refused(published, parameters):
    with pytest.raises(InvalidInputError):
        await create(published, parameters=parameters)


async def test_a_retired_template_makes_no_agents_and_runs_none(published):
    await create(published)
    await published.templates.retire(AUTHOR, REF)
    published.cached.changed()
    with pytest.raises(TemplateRetiredError):
        await create(published, name="another")
    assert (await create(published)).name == "prober"
    published.directory.changed()
    with pytest.raises(TemplateRetiredError):
        await published.directory.resolve(TENANT, "prober")


async def test_a_revoked_template_makes_no_agents_and_runs_none(published):
    await create(published)
    await published.directory.resolve(TENANT, "prober")
    await published.templates.revoke(ADMIN, REF, reason="leaks")
    published.cached.changed()
    with pytest.raises(TemplateRevokedError):
        await create(published, name="another")
    published.directory.changed()
    with pytest.raises(TemplateRevokedError):
        await published.directory.resolve(TENANT, "prober")


async def test_policy_asks_for_the_role_again_behind_the_rules_table(published):
    with pytest.raises(PolicyDeniedError):
        await create(published, subject=CALLER)


async def test_an_update_moves_the_agent_and_its_revision(published):
    agent = await create(published)
    updated = await published.agents.update(AUTHOR, change(agent, template=NEXT, parameters=b'{"depth":2}'))
    assert (updated.template_version, updated.parameters, updated.revision) == ("1.1.0", b'{"depth":2}', 2)
    assert (await published.agents.get(TENANT, "prober")).agent_id == agent.agent_id


async def test_what_an_update_does_not_name_stays(published):
    agent = await create(published, parameters=b'{"depth":1}')
    updated = await published.agents.update(AUTHOR, change(agent, template=NEXT))
    assert updated.parameters == b'{"depth":1}'


async def test_an_update_of_an_older_revision_is_a_conflict(published):
    agent = await create(published)
    await published.agents.update(AUTHOR, change(agent, template=NEXT))
    with pytest.raises(ConflictError):
        await published.agents.update(AUTHOR, change(agent, parameters=b'{"depth":9}'))


async def test_of_two_updates_at_once_one_wins(published):
    agent = await create(published)
    answers = await asyncio.gather(
        *(
            published.agents.update(AUTHOR, change(agent, parameters=f'{{"depth":{depth}}}'.encode()))
            for depth in (1, 2)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, ConflictError) for answer in answers) == 1
    assert (await published.agents.get(TENANT, "prober")).revision == 2


async def test_a_deleted_name_is_free_again_and_the_new_agent_another_one(published):
    first = await create(published)
    await published.agents.delete(AUTHOR, "prober")
    with pytest.raises(NotFoundError):
        await published.agents.get(TENANT, "prober")
    with pytest.raises(NotFoundError):
        await published.agents.delete(AUTHOR, "prober")
    assert (await create(published)).agent_id != first.agent_id


async def test_a_list_is_paged_by_name(published):
    for name in ("c", "a", "b"):
        await create(published, name=name)
    first = await published.agents.list(TENANT, page_size=2, page_token="")
    rest = await published.agents.list(TENANT, page_size=2, page_token=first.next_page_token)
    assert [agent.name for agent in (*first.agents, *rest.agents)] == ["a", "b", "c"]
    assert rest.next_page_token == ""


async def test_another_tenant_sees_nothing(published):
    await create(published)
    other = TenantId("other")
    with pytest.raises(NotFoundError):
        await published.agents.get(other, "prober")
    with pytest.raises(NotFoundError):
        await published.directory.resolve(other, "prober")
    assert (await published.agents.list(other, page_size=0, page_token="")).agents == ()


async def test_the_directory_knows_all_that_an_execution_is_made_from(published):
    agent = await create(published, parameters=b'{"depth":3}')
    resolved = await published.directory.resolve(TENANT, "prober")
    assert (resolved.agent_id, resolved.revision) == (agent.agent_id, 1)
    assert resolved.parameters_digest == sha256_digest(b'{"depth":3}')
    assert (resolved.limits.wall_ms, resolved.retry_is_safe) == (500, False)


async def test_the_directory_answers_from_memory_until_something_changed(published):
    agent = await create(published)
    await published.directory.resolve(TENANT, "prober")
    await published.agents.update(AUTHOR, change(agent, template=NEXT))
    assert (await published.directory.resolve(TENANT, "prober")).revision == 1
    assert (await published.directory.refresh(TENANT, "prober")).revision == 2
    assert (await published.directory.resolve(TENANT, "prober")).revision == 2


async def test_a_read_that_a_change_overtook_is_not_kept(published):
    await create(published)
    reading = asyncio.create_task(published.directory.resolve(TENANT, "prober"))
    await asyncio.sleep(0)
    published.directory.changed()
    await reading
    assert published.directory.stats().entries == 0
