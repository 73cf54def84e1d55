"""The built-in policy as it ships, evaluated by the engine that evaluates it in production."""

import json
from dataclasses import replace

import agentfactory_engine
import pytest

from control_plane.policy.builtin import builtin_policy
from control_plane.policy.domain import PolicyInput, Question, Subject
from control_plane.policy.service import UNDECIDED, PolicyService
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
    capabilities=Capabilities(),
    limits=RequestedLimits(),
    agent="redactor",
    input_bytes=10,
)


class Denials(list):
    def policy_denied(self, question, reason):
        self.append((question, reason))


def service(engine=None, allowed_http=()) -> PolicyService:
    source = builtin_policy(allowed_http)
    return PolicyService(
        engine=engine or agentfactory_engine.Policy(source.source, source.data_json),
        policy_digest=source.digest,
        observer=Denials(),
        clock=FakeClock(),
        random=FakeRandom(),
    )


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
def test_who_may_what(question, role, allowed):
    decision = service().decide(question, with_roles(role))
    assert decision.allowed is allowed
    assert decision.reason == ("ALLOWED" if allowed else "ROLE_NOT_ALLOWED")


@pytest.mark.parametrize("question", list(Question))
def test_no_destination_is_allowed_by_default(question):
    asked = replace(
        with_roles("admin"),
        capabilities=Capabilities(http=(HttpCapability(method="GET", url="https://a.test/"),)),
    )
    decision = service().decide(question, asked)
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
def test_operator_allows_destinations_by_method_and_prefix(entry, method, url, allowed):
    asked = replace(
        with_roles("admin"), capabilities=Capabilities(http=(HttpCapability(method=method, url=url),))
    )
    decision = service(allowed_http=(entry,)).decide(Question.EXECUTE, asked)
    assert decision.allowed is allowed


def test_every_destination_must_be_allowed():
    http = tuple(HttpCapability(method="GET", url=f"https://{host}.test/") for host in "ab")
    asked = replace(with_roles("admin"), capabilities=Capabilities(http=http))
    assert not service(allowed_http=("GET https://a.test/",)).decide(Question.EXECUTE, asked).allowed
    both = service(allowed_http=("GET https://b.test/", "GET https://a.test/"))
    assert both.decide(Question.EXECUTE, asked).allowed


def test_what_the_operator_allows_is_in_the_digest():
    first, second = ("GET https://a.test/", "GET https://b.test/")
    digests = {builtin_policy(entries).digest for entries in ((), (first,), (second,), (first, second))}
    assert len(digests) == 4
    assert builtin_policy((first, second)).digest == builtin_policy((second, first)).digest


@pytest.mark.parametrize(("input_bytes", "allowed"), [(16 * 1024**2, True), (16 * 1024**2 + 1, False)])
def test_the_largest_input_is_the_last_that_is_allowed(input_bytes, allowed):
    assert service().decide(Question.EXECUTE, replace(ASKED, input_bytes=input_bytes)).allowed is allowed


def test_limits_that_nobody_names_get_the_defaults_of_the_manifest():
    assert service().decide(Question.EXECUTE, ASKED).limits == DEFAULT_LIMITS


def test_a_limit_is_granted_as_asked_below_the_ceiling_and_cut_above_it():
    asked = replace(ASKED, limits=RequestedLimits(wall_ms=5, memory_bytes=4 * 1024**3))
    limits = service().decide(Question.EXECUTE, asked).limits
    assert (limits.wall_ms, limits.memory_bytes) == (5, 1024**3)


@pytest.mark.parametrize("name", LIMIT_FIELDS)
def test_every_limit_has_a_ceiling_and_is_granted_as_asked_below_it(name):
    def granted(value: int) -> int:
        asked = replace(ASKED, limits=RequestedLimits(**{name: value}))
        return getattr(service().decide(Question.EXECUTE, asked).limits, name)

    ceiling = granted(getattr(MAX_LIMITS, name))
    assert granted(1) == 1
    assert max(1, getattr(DEFAULT_LIMITS, name)) <= ceiling <= getattr(MAX_LIMITS, name)


def test_a_decision_names_the_exact_policy_and_input():
    decision = service().decide(Question.EXECUTE, ASKED)
    assert decision.policy_digest == builtin_policy().digest
    assert json.loads(decision.input)["subject"]["identity"] == SUBJECT.identity


def test_equal_questions_are_evaluated_once_and_decided_each():
    class Counting:
        calls = 0
        policy = agentfactory_engine.Policy(builtin_policy().source, builtin_policy().data_json)

        def evaluate(self, rule, input_json):
            Counting.calls += 1
            return self.policy.evaluate(rule, input_json)

    asked = service(Counting())
    first, second = asked.decide(Question.EXECUTE, ASKED), asked.decide(Question.EXECUTE, ASKED)
    assert Counting.calls == 1
    assert first.decision_id != second.decision_id


LIMITS = json.dumps(dict.fromkeys(Limits.__slots__, 1))


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
def test_an_answer_of_another_form_denies(answer):
    class Strange:
        def evaluate(self, rule, input_json):
            return answer

    decision = service(Strange()).decide(Question.EXECUTE, ASKED)
    assert (decision.allowed, decision.reason) == (False, UNDECIDED)


def test_an_undefined_rule_denies():
    engine = agentfactory_engine.Policy("package agentfactory\nimport rego.v1\n")
    assert service(engine).decide(Question.EXECUTE, ASKED).reason == UNDECIDED


def test_denials_are_counted():
    asked = service()
    asked.decide(Question.EXECUTE, with_roles("node"))
    assert asked._observer == [("execute", "ROLE_NOT_ALLOWED")]
