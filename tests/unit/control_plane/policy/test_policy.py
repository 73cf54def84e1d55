"""The built-in policy as it ships, evaluated by the engine that evaluates it in production."""

import json
from dataclasses import replace

import pytest

from control_plane.policy.active import FixedPolicy
from control_plane.policy.builtin import builtin_policy
from control_plane.policy.domain import (
    GRANTING,
    Decision,
    Evaluation,
    PolicyBundle,
    PolicyInput,
    Question,
    Subject,
)
from control_plane.policy.embedded import EmbeddedPolicyEngines
from control_plane.policy.service import MAX_CACHED_ANSWERS, UNDECIDED, PolicyService
from shared.digests import sha256_digest
from shared.ids import TenantId
from shared.limits import DEFAULT_LIMITS, LIMIT_FIELDS, MAX_LIMITS, Limits, RequestedLimits
from shared.manifest import Capabilities, HttpCapability
from tests.fakes.clock import FakeClock, FakeRandom

SUBJECT = Subject(
    identity="spiffe://local/caller/a", tenant_id=TenantId("default"), roles=frozenset({"caller"})
)
ASKED = PolicyInput(
    subject=SUBJECT,
    template_name="redact",
    template_version="1.0.0",
    template_digest=sha256_digest(b"manifest"),
    publisher_key_id=sha256_digest(b"publisher"),
    capabilities=Capabilities(),
    limits=RequestedLimits(),
    agent="redactor",
    input_bytes=10,
)


LIMITS = json.dumps(dict.fromkeys(Limits.__slots__, 1))
ALLOW = f'{{"allowed": true, "reason": "ALLOWED", "limits": {LIMITS}}}'


class Answering:
    """An engine that says what it is told."""

    name = "told"
    digest = sha256_digest(b"bundle")

    def __init__(self, value_json, *, is_pure=True):
        self.value_json = value_json
        self.is_pure = is_pure
        self.calls = 0

    async def evaluate(self, rule, input_json):
        self.calls += 1
        return Evaluation(value_json=self.value_json)


class Denials(list):
    def __init__(self):
        super().__init__()
        self.decided = []

    def policy_decided(self, question, seconds):
        self.decided.append((question, seconds))

    def policy_denied(self, question, reason, tenant_id):
        self.append((question, reason))


def service(engine) -> PolicyService:
    return PolicyService(
        in_force=FixedPolicy(engine), observer=Denials(), clock=FakeClock(), random=FakeRandom()
    )


async def builtin(allowed_http=()) -> PolicyService:
    return service(await EmbeddedPolicyEngines().load(builtin_policy(allowed_http)))


async def decided(question, asked, allowed_http=()) -> Decision:
    return await (await builtin(allowed_http)).decide(question, asked)


def with_roles(*roles: str) -> PolicyInput:
    return replace(ASKED, subject=replace(SUBJECT, roles=frozenset(roles)))


@pytest.mark.parametrize(
    ("question", "role", "allowed"),
    [
        (Question.EXECUTE, "caller", True),
        (Question.EXECUTE, "author", True),
        (Question.EXECUTE, "admin", True),
        (Question.EXECUTE, "operator", False),
        (Question.EXECUTE, "node", False),
        (Question.CREATE_AGENT, "author", True),
        (Question.CREATE_AGENT, "caller", False),
        (Question.PUBLISH_TEMPLATE, "admin", True),
        (Question.PUBLISH_TEMPLATE, "caller", False),
    ],
)
async def test_who_may_what(question, role, allowed):
    decision = await decided(question, with_roles(role))
    assert decision.allowed is allowed
    assert decision.reason == ("ALLOWED" if allowed else "ROLE_NOT_ALLOWED")


@pytest.mark.parametrize("question", sorted({*GRANTING, Question.GRANT_CAPABILITIES}))
async def test_no_destination_is_allowed_by_default(question):
    asked = replace(
        with_roles("admin"),
        capabilities=Capabilities(http=(HttpCapability(method="GET", url="https://a.test/"),)),
    )
    decision = await decided(question, asked)
    assert (decision.allowed, decision.reason) == (False, "CAPABILITY_NOT_ALLOWED")


@pytest.mark.parametrize(
    ("entry", "method", "url", "allowed"),
    [
        ("GET https://a.test/", "GET", "https://a.test/", True),
        ("GET https://a.test/", "GET", "https://a.test/v1/", True),
        ("GET https://a.test/", "POST", "https://a.test/", False),
        ("* https://a.test/", "POST", "https://a.test/v1", True),
        ("GET https://a.test/v1", "GET", "https://a.test/v1", True),
        ("GET https://a.test/v1", "GET", "https://a.test/v1/x", True),
        ("GET https://a.test/v1", "GET", "https://a.test/v10", False),
        ("GET https://a.test/v1/", "GET", "https://a.test/v1", False),
        ("GET https://a.test/", "GET", "http://a.test/", False),
        ("GET https://a.test/", "GET", "https://a.test.evil/", False),
        ("GET https://a.test/", "GET", "https://a.test:444/", False),
    ],
)
async def test_operator_allows_destinations_by_method_and_prefix(entry, method, url, allowed):
    asked = replace(
        with_roles("admin"), capabilities=Capabilities(http=(HttpCapability(method=method, url=url),))
    )
    decision = await decided(Question.EXECUTE, asked, (entry,))
    assert decision.allowed is allowed


async def test_every_destination_must_be_allowed():
    http = tuple(HttpCapability(method="GET", url=f"https://{host}.test/") for host in "ab")
    asked = replace(with_roles("admin"), capabilities=Capabilities(http=http))
    one = ("GET https://a.test/",)
    assert not (await decided(Question.EXECUTE, asked, one)).allowed
    assert (await decided(Question.EXECUTE, asked, ("GET https://b.test/", *one))).allowed


def test_what_the_operator_allows_is_in_the_digest():
    first, second = ("GET https://a.test/", "GET https://b.test/")
    digests = {builtin_policy(entries).digest for entries in ((), (first,), (second,), (first, second))}
    assert len(digests) == 4
    assert builtin_policy((first, second)).digest == builtin_policy((second, first)).digest


@pytest.mark.parametrize(("input_bytes", "allowed"), [(16 * 1024**2, True), (16 * 1024**2 + 1, False)])
async def test_the_largest_input_is_the_last_that_is_allowed(input_bytes, allowed):
    decision = await decided(Question.EXECUTE, replace(ASKED, input_bytes=input_bytes))
    assert decision.allowed is allowed


async def test_limits_that_nobody_names_get_the_defaults_of_the_manifest():
    assert (await decided(Question.EXECUTE, ASKED)).limits == DEFAULT_LIMITS


async def test_a_limit_is_granted_as_asked_below_the_ceiling_and_cut_above_it():
    asked = replace(ASKED, limits=RequestedLimits(wall_ms=5, memory_bytes=4 * 1024**3))
    limits = (await decided(Question.EXECUTE, asked)).limits
    assert (limits.wall_ms, limits.memory_bytes) == (5, 1024**3)


@pytest.mark.parametrize("name", LIMIT_FIELDS)
async def test_every_limit_has_a_ceiling_and_is_granted_as_asked_below_it(name):
    async def granted(value: int) -> int:
        asked = replace(ASKED, limits=RequestedLimits(**{name: value}))
        return getattr((await decided(Question.EXECUTE, asked)).limits, name)

    ceiling = await granted(getattr(MAX_LIMITS, name))
    assert await granted(1) == 1
    assert max(1, getattr(DEFAULT_LIMITS, name)) <= ceiling <= getattr(MAX_LIMITS, name)


async def test_a_decision_names_the_exact_policy_and_input():
    decision = await decided(Question.EXECUTE, ASKED)
    assert decision.policy_digest == builtin_policy().digest
    assert json.loads(decision.input)["subject"]["identity"] == SUBJECT.identity


async def test_equal_questions_are_evaluated_once_and_decided_each():
    engine = Answering(ALLOW)
    asked = service(engine)
    first, second = [await asked.decide(Question.EXECUTE, ASKED) for _ in range(2)]
    assert engine.calls == 1
    assert first.decision_id != second.decision_id


async def test_a_remembered_answer_is_given_without_a_suspension():
    asked = service(Answering(ALLOW))
    await asked.decide(Question.EXECUTE, ASKED)
    with pytest.raises(StopIteration) as ended:
        asked.decide(Question.EXECUTE, ASKED).send(None)
    assert ended.value.value.allowed


async def test_where_equal_inputs_may_get_other_answers_each_is_evaluated():
    engine = Answering(ALLOW, is_pure=False)
    asked = service(engine)
    for _ in range(2):
        await asked.decide(Question.EXECUTE, ASKED)
    assert engine.calls == 2


async def test_that_there_was_no_answer_is_not_remembered():
    engine = Answering("null")
    asked = service(engine)
    assert not (await asked.decide(Question.EXECUTE, ASKED)).allowed
    engine.value_json = ALLOW
    assert (await asked.decide(Question.EXECUTE, ASKED)).allowed


async def test_answers_beyond_the_bound_are_forgotten_the_least_used_first():
    engine = Answering(ALLOW)
    asked = service(engine)
    for size in (*range(MAX_CACHED_ANSWERS), 0, MAX_CACHED_ANSWERS, 0, 1):
        await asked.decide(Question.EXECUTE, replace(ASKED, input_bytes=size))
    assert engine.calls == MAX_CACHED_ANSWERS + 2


@pytest.mark.parametrize(
    "answer",
    [
        "true",
        "{}",
        "null",
        "not json",
        f'{{"allowed": "true", "reason": "x", "limits": {LIMITS}}}',
        f'{{"allowed": 1, "reason": "x", "limits": {LIMITS}}}',
        '{"allowed": true, "reason": "x", "limits": {}}',
        f'{{"allowed": true, "reason": "x", "limits": {LIMITS.replace("1", "0", 1)}}}',
        f'{{"allowed": true, "reason": "x", "limits": {LIMITS.replace("1", "true", 1)}}}',
    ],
)
async def test_an_answer_of_another_form_denies(answer):
    decision = await service(Answering(answer)).decide(Question.EXECUTE, ASKED)
    assert (decision.allowed, decision.reason) == (False, UNDECIDED)


async def test_an_undefined_rule_denies():
    bundle = PolicyBundle.of({"empty.rego": "package agentfactory\n"}, {})
    engine = await EmbeddedPolicyEngines().load(bundle)
    assert (await service(engine).decide(Question.EXECUTE, ASKED)).reason == UNDECIDED


async def test_denials_are_counted():
    asked = await builtin()
    await asked.decide(Question.EXECUTE, with_roles("node"))
    assert asked._observer == [("execute", "ROLE_NOT_ALLOWED")]
