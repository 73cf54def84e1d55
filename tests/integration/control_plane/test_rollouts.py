"""Rollouts and channels over a real Postgres: step by step, back at once, and nothing of somebody else's."""

import asyncio

import pytest

from control_plane.agents.service import AgentUpdate
from control_plane.policy.domain import Subject
from control_plane.templates.domain import TemplateRef
from shared.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    PolicyDeniedError,
    TemplateRetiredError,
    TemplateRevokedError,
    WrongStateError,
)
from shared.ids import TenantId
from tests.integration.control_plane.registry import ADMIN, AUTHOR, CALLER, TENANT, package

OTHER = TenantId("other")
STRANGER = Subject(identity="spiffe://test/caller/stranger", tenant_id=OTHER, roles=frozenset({"author"}))
STABLE = TemplateRef(name="probe", channel="stable")


def ref(version):
    return TemplateRef(name="probe", version=version)


@pytest.fixture
async def published(registry):
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        await registry.publish(await package(version=version))
    await registry.publish(await package(name="else", version="1.1.0"))
    return registry


@pytest.fixture
async def agent(published):
    return await published.agents.create(
        AUTHOR, name="prober", template=ref("1.0.0"), parameters=b'{"depth":3}'
    )


async def roll_out(registry, *, version="1.1.0", percent=10, parameters=b"", subject=AUTHOR, name="prober"):
    return await registry.rollouts.roll_out(
        subject, name, version=version, percent=percent, parameters=parameters
    )


async def roll_back(registry, *, subject=AUTHOR):
    return await registry.rollouts.roll_back(subject, "prober", reason="worse")


async def move(registry, version="1.0.0", *, channel="stable", revision=0, subject=AUTHOR, template="probe"):
    return await registry.channels.move(
        subject, template_name=template, channel=channel, version=version, revision=revision
    )


async def versions_of(registry, requests=200, name="prober"):
    registry.directory.changed()
    resolved = await registry.directory.resolve(TENANT, name)
    return {resolved.for_request(f"r{n}").template_version for n in range(requests)}


# --- rollouts


async def test_a_rollout_goes_step_by_step_and_every_step_is_on_record(published, agent):
    for percent in (10, 50):
        assert (await roll_out(published, percent=percent)).candidate.percent == percent
        assert await versions_of(published) == {"1.0.0", "1.1.0"}
    await roll_out(published, percent=100)
    assert await versions_of(published) == {"1.1.0"}
    steps = await published.rows(
        "SELECT details->>'percent' FROM audit_entries WHERE action = 'agent.rollout' ORDER BY recorded_at"
    )
    decisions = await published.rows("SELECT count(*) FROM decisions WHERE question = 'create_agent'")
    assert ([step for (step,) in steps], decisions) == (["10", "50", "100"], [(4,)])


async def test_a_rollback_is_one_step_back(published, agent):
    await roll_out(published, percent=90)
    assert (await roll_back(published)).candidate is None
    assert await versions_of(published) == {"1.0.0"}
    await roll_out(published, percent=100)
    assert (await roll_back(published)).template_version == "1.0.0"
    assert await versions_of(published) == {"1.0.0"}
    with pytest.raises(WrongStateError):
        await roll_back(published)
    assert [action for action, _, _ in await published.audit()].count("agent.rolled_back") == 2


async def test_each_version_has_parameters_that_fit_it(published, agent):
    await roll_out(published, percent=50, parameters=b'{"depth":7}')
    await roll_out(published, percent=60)
    published.directory.changed()
    resolved = await published.directory.resolve(TENANT, "prober")
    assert (resolved.parameters, resolved.candidate.parameters) == (b'{"depth":3}', b'{"depth":7}')
    after = await roll_out(published, percent=100)
    assert (after.parameters, (await roll_back(published)).parameters) == (b'{"depth":7}', b'{"depth":3}')


@pytest.mark.parametrize("percent", [0, -1, 101, 2**31])
async def test_a_share_out_of_range_is_refused(published, agent, percent):
    with pytest.raises(InvalidInputError):
        await roll_out(published, percent=percent)
    assert (await published.agents.get(TENANT, "prober")).revision == 1


async def test_only_an_own_version_of_the_own_template_can_be_rolled_out(published, agent):
    await published.publish(await package(version="9.0.0"), STRANGER)
    for version in ("9.0.0", "0.0.1", "1.1.0+else"):
        with pytest.raises(NotFoundError):
            await roll_out(published, version=version)
    with pytest.raises(NotFoundError):
        await roll_out(published, version="9.0.0", subject=STRANGER)
    assert (await published.agents.get(TENANT, "prober")).candidate is None


async def test_a_closed_version_is_not_rolled_out_and_not_gone_back_to(published, agent):
    await published.templates.retire(AUTHOR, ref("1.1.0"))
    with pytest.raises(TemplateRetiredError):
        await roll_out(published)
    await roll_out(published, version="1.2.0", percent=100)
    await published.templates.revoke(ADMIN, ref("1.0.0"), reason="leaks")
    published.cached.changed()
    with pytest.raises(TemplateRevokedError):
        await roll_back(published)


async def test_a_candidate_that_is_closed_takes_nothing_down_with_it(published, agent):
    await roll_out(published, percent=90)
    await published.templates.revoke(ADMIN, ref("1.1.0"), reason="leaks")
    assert await versions_of(published) == {"1.0.0"}


async def test_policy_and_parameters_are_asked_for_the_new_version(published, agent):
    with pytest.raises(PolicyDeniedError):
        await roll_out(published, subject=CALLER)
    with pytest.raises(InvalidInputError):
        await roll_out(published, parameters=b'{"depth":"deep"}')
    assert (await published.agents.get(TENANT, "prober")).candidate is None


async def test_an_update_waits_for_the_end_of_a_rollout(published, agent):
    rolled = await roll_out(published)
    change = AgentUpdate(name="prober", revision=rolled.revision, template=ref("1.2.0"), parameters=None)
    with pytest.raises(WrongStateError):
        await published.agents.update(AUTHOR, change)


async def test_of_two_rollouts_at_once_one_wins(published, agent):
    answers = await asyncio.gather(
        roll_out(published), roll_out(published, version="1.2.0"), return_exceptions=True
    )
    assert sum(isinstance(answer, ConflictError | WrongStateError) for answer in answers) == 1
    assert (await published.agents.get(TENANT, "prober")).revision == 2


async def test_versions_are_compared_by_how_their_executions_stand(published, agent):
    rolled = await roll_out(published)
    columns = (
        "execution_id, tenant_id, agent_id, agent_name, caller, template_digest, module_digest, parameters,"
        " parameters_digest, input_body_id, input_commitment, input_bytes, media_type, profile, seed,"
        " clock_start_at, limits, capabilities, retry_is_safe, decision_id, policy_digest, run_deadline_at, state"
    )
    for number, (digest, state) in enumerate(
        [(agent.template_digest, "succeeded")] * 3 + [(rolled.candidate.to.digest, "failed")]
    ):
        await published.run(
            f"INSERT INTO executions ({columns}) VALUES ('exe_{number}', 'default', '{agent.agent_id}', 'prober',"
            f" 'me', '{digest}', 'm', '', '', '', '', 0, '', 'default', '', now(), '', '', false, '', '', now(),"
            f" '{state}')"
        )
    compared = await published.rollouts.compare(TENANT, "prober")
    assert [(one.version, dict(one.executions)) for one in compared] == [
        ("1.0.0", {"succeeded": 3}),
        ("1.1.0", {"failed": 1}),
    ]
    with pytest.raises(NotFoundError):
        await published.rollouts.compare(OTHER, "prober")


# --- channels


async def follow(registry, name="prober", parameters=b"{}"):
    return await registry.agents.create(AUTHOR, name=name, template=STABLE, parameters=parameters)


async def test_agents_that_follow_a_channel_move_with_it(published):
    await move(published)
    first, pinned = (
        await follow(published),
        await published.agents.create(AUTHOR, name="pinned", template=ref("1.0.0"), parameters=b"{}"),
    )
    moved = await move(published, "1.1.0")
    after = await published.agents.get(TENANT, "prober")
    assert (first.template_version, first.channel) == ("1.0.0", "stable")
    assert (moved.agents_moved, moved.channel.revision) == (1, 2)
    assert (after.template_version, after.channel, after.revision) == ("1.1.0", "stable", 2)
    assert (await published.agents.get(TENANT, pinned.name)).template_version == "1.0.0"
    assert [action for action, _, _ in await published.audit()].count("channel.moved") == 2


async def test_moving_to_where_it_is_has_no_effect(published):
    await move(published)
    again = await move(published)
    assert (again.channel.revision, again.agents_moved) == (1, 0)


async def test_one_agent_that_cannot_follow_keeps_everything_where_it_is(published):
    await move(published)
    await follow(published, parameters=b'{"depth":3}')
    await follow(published, name="another")
    await published.run("UPDATE agents SET parameters = '{\"width\": 1}' WHERE name = 'prober'")
    with pytest.raises(InvalidInputError, match="agent prober cannot follow"):
        await move(published, "1.1.0")
    versions = await published.rows("SELECT DISTINCT template_version FROM agents")
    channels = await published.channels.list(TENANT, template_name="", page_size=0, page_token="")
    assert (versions, channels.items[0].template_version) == ([("1.0.0",)], "1.0.0")


async def test_an_agent_that_follows_has_no_rollout_and_a_pinned_one_does_not_follow(published):
    await move(published)
    agent = await follow(published)
    with pytest.raises(WrongStateError):
        await roll_out(published)
    pin = AgentUpdate(name="prober", revision=agent.revision, template=ref("1.0.0"), parameters=None)
    assert (await published.agents.update(AUTHOR, pin)).channel == ""
    assert (await move(published, "1.1.0")).agents_moved == 0


async def test_the_same_agent_pinned_and_following_are_not_the_same(published):
    await move(published)
    agent = await follow(published)
    assert (await follow(published)).agent_id == agent.agent_id
    with pytest.raises(AlreadyExistsError):
        await published.agents.create(AUTHOR, name="prober", template=ref("1.0.0"), parameters=b"{}")


async def test_an_agent_joins_a_channel_before_or_after_its_move_never_in_between(published):
    await move(published)
    for number in range(6):
        target = "1.1.0" if number % 2 == 0 else "1.0.0"
        await asyncio.gather(
            follow(published, name=f"a{number}"), move(published, target), return_exceptions=True
        )
    (channel,) = (
        await published.channels.list(TENANT, template_name="probe", page_size=0, page_token="")
    ).items
    found = await published.rows("SELECT DISTINCT template_version FROM agents WHERE channel = 'stable'")
    assert found in ([], [(channel.template_version,)])


async def test_the_channel_of_another_tenant_is_not_there(published):
    await move(published)
    await published.publish(await package(version="1.0.0"), STRANGER)
    for change in (
        published.agents.create(STRANGER, name="thief", template=STABLE, parameters=b"{}"),
        move(published, "1.2.0", subject=STRANGER),
    ):
        with pytest.raises(NotFoundError):
            await change
    theirs = await published.channels.list(OTHER, template_name="", page_size=0, page_token="")
    assert theirs.items == ()


async def test_another_revision_is_a_conflict_and_a_bad_name_none_of_a_channel(published):
    await move(published)
    with pytest.raises(ConflictError):
        await move(published, "1.1.0", revision=7)
    for name in ("1.0.0", "Stable", "", "a b", "x" * 64):
        with pytest.raises(InvalidInputError):
            await move(published, channel=name)


async def test_a_channel_does_not_move_to_a_closed_version(published):
    await published.templates.retire(AUTHOR, ref("1.1.0"))
    with pytest.raises(TemplateRetiredError):
        await move(published, "1.1.0")


async def test_what_moves_is_not_retired_by_its_channel(published):
    await move(published)
    with pytest.raises(InvalidInputError):
        await published.templates.retire(AUTHOR, STABLE)


async def test_channels_are_listed_by_page(published):
    for channel in ("stable", "canary", "next"):
        await move(published, channel=channel)
    await move(published, "1.1.0", template="else")
    seen, token = [], ""
    while True:
        page = await published.channels.list(TENANT, template_name="", page_size=2, page_token=token)
        seen += [(one.template_name, one.channel) for one in page.items]
        token = page.next_page_token
        if not token:
            break
    assert seen == [("else", "stable"), ("probe", "canary"), ("probe", "next"), ("probe", "stable")]
