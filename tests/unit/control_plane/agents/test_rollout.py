"""A rollout as transitions of an agent, and which requests it draws."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.agents.domain import Agent, Candidate, VersionOfAgent, runs_candidate
from shared.digests import sha256_digest
from shared.errors import WrongStateError
from shared.ids import AgentId, TenantId
from tests.fakes.answers import resolved_agent
from tests.fakes.clock import START

LATER = START + timedelta(hours=1)


def version(number: str) -> VersionOfAgent:
    return VersionOfAgent(version=number, digest=sha256_digest(number.encode()), parameters=b"{}")


OLD, NEW, OTHER = version("1.0.0"), version("1.1.0"), version("1.2.0")
AGENT = Agent(
    agent_id=AgentId("agt_1"),
    tenant_id=TenantId("default"),
    name="desk",
    template_name="redact",
    template_version=OLD.version,
    template_digest=OLD.digest,
    parameters=OLD.parameters,
    revision=1,
    created_at=START,
    updated_at=START,
)


def test_a_rollout_gives_a_share_and_leaves_what_runs():
    after = AGENT.roll_out(NEW, 10, now=LATER)
    assert (after.current, after.candidate) == (OLD, Candidate(to=NEW, percent=10))
    assert (after.revision, after.updated_at) == (2, LATER)


def test_all_of_them_ends_the_rollout_and_remembers_the_way_back():
    after = AGENT.roll_out(NEW, 10, now=LATER).roll_out(NEW, 100, now=LATER)
    assert (after.current, after.candidate, after.previous) == (NEW, None, OLD)


@pytest.mark.parametrize("percent", [10, 100])
def test_the_same_again_changes_nothing(percent):
    after = AGENT.roll_out(NEW, percent, now=LATER)
    assert after.roll_out(NEW, percent, now=LATER + timedelta(hours=1)) is after


@pytest.mark.parametrize(
    "agent",
    [
        AGENT.roll_out(OTHER, 10, now=LATER),
        replace(AGENT, channel="stable"),
        replace(AGENT, template_digest=NEW.digest),
    ],
    ids=["another rollout", "a channel", "runs it already"],
)
def test_what_stands_in_the_way_is_named(agent):
    with pytest.raises(WrongStateError):
        agent.roll_out(NEW, 20, now=LATER)


def test_rolling_back_what_is_under_way_leaves_what_ran():
    after = AGENT.roll_out(NEW, 90, now=LATER).roll_back(now=LATER)
    assert (after.current, after.candidate, after.revision) == (OLD, None, 3)


def test_rolling_back_what_was_finished_goes_back_once():
    after = AGENT.roll_out(NEW, 100, now=LATER).roll_back(now=LATER)
    assert (after.current, after.previous) == (OLD, None)
    with pytest.raises(WrongStateError):
        after.roll_back(now=LATER)


REQUESTS = st.text(min_size=1, max_size=64)


@given(REQUESTS, st.integers(1, 98), st.integers(1, 99))
def test_a_larger_share_takes_nothing_back(request_id, percent, more):
    larger = min(99, percent + more)
    if runs_candidate("agt_1", NEW.digest, request_id, percent=percent):
        assert runs_candidate("agt_1", NEW.digest, request_id, percent=larger)


@pytest.mark.parametrize("percent", [1, 10, 50, 99])
def test_the_share_is_what_was_asked_for(percent):
    drawn = sum(runs_candidate("agt_1", NEW.digest, f"request-{n}", percent=percent) for n in range(20_000))
    assert abs(drawn / 20_000 - percent / 100) < 0.015


def test_another_rollout_draws_other_requests():
    requests = [f"request-{n}" for n in range(2000)]
    first = {one for one in requests if runs_candidate("agt_1", NEW.digest, one, percent=50)}
    second = {one for one in requests if runs_candidate("agt_1", OTHER.digest, one, percent=50)}
    assert 0.15 < len(first & second) / len(requests) < 0.35


def test_a_request_runs_the_version_that_its_id_draws():
    old = resolved_agent()
    new = replace(old, template_digest=NEW.digest)
    agent = replace(old, candidate=new, candidate_percent=50)
    for n in range(100):
        drawn = runs_candidate(agent.agent_id, NEW.digest, f"r{n}", percent=50)
        assert agent.for_request(f"r{n}").template_digest == (NEW.digest if drawn else old.template_digest)
    assert old.for_request("r1") is old
