"""Denied engines over a real Postgres: what is on record, what a repeat does, and what never is one."""

import asyncio

import pytest

from control_plane.audit.store import PostgresAuditStore
from control_plane.engines.domain import EngineRule
from control_plane.engines.service import MAX_DENIALS, EngineService
from control_plane.engines.store import PostgresEngineDenialStore
from shared.clock import SystemClock, SystemRandom
from shared.errors import InvalidInputError, ResourceExhaustedError
from tests.integration.control_plane.registry import ADMIN

RULE = EngineRule(name="wasmer-cranelift", version="7.4.1")


@pytest.fixture
def engines(registry) -> EngineService:
    return EngineService(
        database=registry.database,
        store=PostgresEngineDenialStore(registry.database),
        audit=PostgresAuditStore(registry.database),
        clock=SystemClock(),
        random=SystemRandom(),
    )


async def test_an_engine_is_denied_and_allowed_again_on_record_and_repeats_change_nothing(registry, engines):
    first = await engines.deny(ADMIN, RULE, reason="CVE")
    again = await engines.deny(ADMIN, RULE, reason="again")
    assert (again.reason, again.denied_at) == ("CVE", first.denied_at)
    assert [denial.rule for denial in await engines.list()] == [RULE]

    await engines.allow(ADMIN, EngineRule(name=RULE.name), reason="not that one")
    assert len(await engines.list()) == 1
    await engines.allow(ADMIN, RULE, reason="fixed")
    await engines.allow(ADMIN, RULE, reason="again")

    assert await engines.list() == []
    assert await registry.audit() == [
        ("engine.denied", RULE.name, "ok"),
        ("engine.allowed", RULE.name, "ok"),
    ]


async def test_of_two_at_once_one_is_made(engines):
    await asyncio.gather(*(engines.deny(ADMIN, RULE, reason="CVE") for _ in range(4)), return_exceptions=True)
    assert len(await engines.list()) == 1


async def test_there_is_a_bound(engines):
    for number in range(MAX_DENIALS):
        await engines.deny(ADMIN, EngineRule(name="x", version=str(number)), reason="CVE")
    with pytest.raises(ResourceExhaustedError):
        await engines.deny(ADMIN, RULE, reason="one more")


@pytest.mark.parametrize(
    "rule", [{"name": "a\nb"}, {"name": "a", "version": "\0"}, {"name": "a", "config_digest": "sha256:1"}]
)
def test_what_is_no_engine_is_refused(rule):
    with pytest.raises(InvalidInputError):
        EngineRule(**rule)
