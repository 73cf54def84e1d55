"""What every policy engine does: the embedded one, and OPA servers that are real ones."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from control_plane.policy.builtin import builtin_policy
from control_plane.policy.domain import PolicyBundle, Question
from control_plane.policy.embedded import EmbeddedPolicyEngines
from control_plane.policy.opa_server import OpaPolicyEngines
from control_plane.policy.ports import PolicyEngine
from control_plane.policy.service import UNDECIDED
from shared.errors import PolicyInvalidError, PolicyUndecidedError, UnavailableError
from shared.limits import RequestedLimits
from tests.fixtures.opa import OpaServer, opa_server
from tests.unit.control_plane.policy.test_policy import ASKED, service, with_roles

TASKS = 64
ROUNDS = 5
ENDS_WITHIN_SECONDS = 90

SOURCE = """package agentfactory

import data.lib

default allow := false

allow if input.user in data.admins

echo := lib.same(input.user)

undefined_for_all if input.none

failing := to_number(input.user)

slow if {
	some x in numbers.range(1, 30000)
	some y in numbers.range(1, 30000)
	x * y == -1
}

execute := input.input_bytes
"""
LIB = "package lib\n\nsame(x) := x\n"
BUNDLE = PolicyBundle.of({"main.rego": SOURCE, "lib/lib.rego": LIB}, {"admins": ["alice"]})
OTHER = PolicyBundle.of({"main.rego": "package agentfactory\n\necho := 2\n"}, {})
BROKEN = PolicyBundle.of({"main.rego": "package agentfactory\n\necho := {\n"}, {})


@dataclass(frozen=True)
class Engines:
    server: OpaServer | None
    engines: EmbeddedPolicyEngines | OpaPolicyEngines

    async def load(self, bundle: PolicyBundle) -> PolicyEngine:
        if self.server is not None:
            await self.server.give(bundle)
        return await self.engines.load(bundle)


@pytest.fixture(params=["embedded", "opa"])
async def engines(request, tmp_path) -> AsyncIterator[Engines]:
    if request.param == "embedded":
        yield Engines(None, EmbeddedPolicyEngines())
        return
    with opa_server(tmp_path) as server:
        # More than in production: two cores are shared with whatever runs beside the tests.
        adapter = OpaPolicyEngines([server.url], timeout=timedelta(seconds=60))
        yield Engines(server, adapter)
        await adapter.close()


async def value(engine: PolicyEngine, rule: str, **asked: object) -> object:
    return json.loads((await engine.evaluate(f"data.agentfactory.{rule}", json.dumps(asked))).value_json)


async def test_answers_come_from_input_data_and_all_files(engines):
    engine = await engines.load(BUNDLE)
    assert await value(engine, "allow", user="alice") is True
    assert await value(engine, "allow", user="bob") is False
    assert await value(engine, "echo", user={"a": [1, None, "ä"]}) == {"a": [1, None, "ä"]}
    assert engine.digest == BUNDLE.digest
    assert engine.is_pure


@pytest.mark.parametrize("rule", ["undefined_for_all", "no_such_rule", "failing"])
async def test_no_answer_is_an_error(engines, rule):
    engine = await engines.load(BUNDLE)
    with pytest.raises(PolicyUndecidedError):
        await value(engine, rule, user="bob")


async def test_an_evaluation_that_does_not_end_is_ended(engines):
    engine = await engines.load(BUNDLE)
    started = time.monotonic()
    with pytest.raises(PolicyUndecidedError):
        await value(engine, "slow")
    assert time.monotonic() - started < ENDS_WITHIN_SECONDS


async def test_an_answer_of_another_form_denies(engines):
    decision = await service(await engines.load(BUNDLE)).decide(Question.EXECUTE, ASKED)
    assert (decision.allowed, decision.reason) == (False, UNDECIDED)


async def test_answers_to_many_at_once_are_never_mixed(engines):
    engine = await engines.load(BUNDLE)

    async def ask(name: str) -> set[object]:
        return {await value(engine, "echo", user=name) for _ in range(ROUNDS)}

    names = [f"user-{number}" for number in range(TASKS)]
    assert await asyncio.gather(*map(ask, names)) == [{name} for name in names]


async def test_after_another_bundle_is_loaded_nobody_gets_its_answers_unasked(engines):
    first = await engines.load(BUNDLE)
    second = await engines.load(OTHER)
    assert await value(second, "echo", user=1) == 2
    try:
        assert await value(first, "echo", user=1) == 1
    except PolicyUndecidedError:
        assert first.name == "opa"


async def test_what_is_not_rego_is_not_loaded_and_the_engine_before_goes_on(engines):
    first = await engines.load(BUNDLE)
    if engines.server is not None:
        engines.server.bundle_file.write_bytes(b"no bundle")
    with pytest.raises((PolicyInvalidError, UnavailableError)):
        await engines.engines.load(BROKEN)
    assert await value(first, "echo", user=1) == 1


async def test_a_policy_that_reads_the_clock_is_not_pure(engines):
    source = "package agentfactory\n\nnow := time.now_ns()\n"
    engine = await engines.load(PolicyBundle.of({"main.rego": source}, {}))
    assert not engine.is_pure
    assert await value(engine, "now") > 0


@pytest.mark.parametrize("question", list(Question))
async def test_the_shipped_policy_decides_the_same(engines, question):
    shipped = builtin_policy(("GET https://a.test/",))
    asked = [with_roles(role) for role in ("admin", "author", "caller", "operator", "node")]
    asked.append(replace(ASKED, limits=RequestedLimits(wall_ms=7, memory_bytes=2**40)))
    expected = service(await EmbeddedPolicyEngines().load(shipped))
    decided = service(await engines.load(shipped))
    for one in asked:
        want, got = await expected.decide(question, one), await decided.decide(question, one)
        assert (got.allowed, got.reason, got.limits) == (want.allowed, want.reason, want.limits)
