"""How HTTP's parts become messages, and what is refused on the way."""

import json
import re

import pytest
from agentfactory.v1 import agents_pb2, executions_pb2, templates_pb2
from hypothesis import given
from hypothesis import strategies as st

from control_plane.gateway.api import Api
from control_plane.gateway.fields import decimal_pattern, duration_type
from control_plane.gateway.problems import ProblemError
from control_plane.gateway.requests import Parts
from shared.errors import MalformedError

READERS = {reader.route.name: reader for reader in Api.of_contract().readers}
DIGEST = "sha256:" + "a" * 64
EXECUTION = "exe_0190f5ac-7e2d-7b3c-8a1b-0123456789ab"


def read(name, *, path=None, query=(), headers=None, body=None):
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    parts = Parts(path=path or {}, query=query, headers=headers or {}, body=data)
    return READERS[name].read(parts, max_bytes=100_000)


def refusal(name, **parts):
    with pytest.raises(ProblemError) as caught:
        read(name, **parts)
    assert caught.value.problem.status == 400
    return {(one.location, one.pointer) for one in caught.value.problem.violations}


def test_all_parts_make_one_message():
    message = read(
        "Execute",
        headers={"idempotency-key": "r1", "traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"},
        body={
            "execution": {"agent": "a", "inline": "aGk=", "runDeadline": "1.5s", "priority": "PRIORITY_HIGH"}
        },
    )

    expected = executions_pb2.ExecuteRequest()
    expected.execution.agent, expected.execution.request_id, expected.execution.inline = "a", "r1", b"hi"
    expected.execution.run_deadline.FromMilliseconds(1500)
    expected.execution.priority = executions_pb2.PRIORITY_HIGH
    expected.execution.traceparent = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    assert expected == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redact@1.2.0", templates_pb2.TemplateRef(name="redact", version="1.2.0")),
        (DIGEST, templates_pb2.TemplateRef(digest=DIGEST)),
    ],
)
def test_a_word_of_the_path_names_a_template(text, expected):
    assert templates_pb2.GetTemplateRequest(template=expected) == read("GetTemplate", path={"template": text})


def test_pages_and_lists_come_from_the_query():
    message = read(
        "ListExecutions",
        query=[("pageSize", "5"), ("states", "EXECUTION_STATE_LOST"), ("states", "EXECUTION_STATE_FAILED")],
    )

    assert message.page.page_size == 5
    assert message.states == [executions_pb2.EXECUTION_STATE_LOST, executions_pb2.EXECUTION_STATE_FAILED]


@pytest.mark.parametrize("revision", ["7", 7, 7.0])
def test_64_bits_are_text_or_number(revision):
    message = read("UpdateAgent", path={"name": "a"}, body={"revision": revision})

    assert agents_pb2.UpdateAgentRequest(name="a", revision=7) == message


@pytest.mark.parametrize(
    ("name", "parts", "violations"),
    [
        ("GetTemplate", {"path": {"template": "redact"}}, {("path", "template")}),
        ("GetExecution", {"path": {"executionId": "exe_1"}}, {("path", "executionId")}),
        ("ListAgents", {"query": [("pageSize", "501")]}, {("query", "pageSize")}),
        ("ListAgents", {"query": [("pageSize", "1_0")]}, {("query", "pageSize")}),
        ("ListAgents", {"query": [("pageSize", " 1")]}, {("query", "pageSize")}),
        ("ListAgents", {"query": [("pageSize", "1"), ("pageSize", "2")]}, {("query", "pageSize")}),
        ("ListAgents", {"query": [("page_size", "1")]}, {("query", "page_size")}),
        ("ListAgents", {"query": [("PAGESIZE", "1")]}, {("query", "PAGESIZE")}),
        ("ListExecutions", {"query": [("states", "EXECUTION_STATE_UNSPECIFIED")]}, {("query", "states/0")}),
        (
            "CancelExecution",
            {"path": {"executionId": EXECUTION}, "body": {"executionId": "x"}},
            {("body", "")},
        ),
        ("CreateAgent", {"body": {"name": "A", "template": {"digest": DIGEST}}}, {("body", "/name")}),
        ("CreateAgent", {"body": {"name": "a"}}, {("body", "/template")}),
        ("CreateAgent", {"body": {"name": None, "template": {"digest": DIGEST}}}, {("body", "/name")}),
        ("CreateAgent", {"body": {"name": "a", "template": {"digest": DIGEST}, "x": 1}}, {("body", "/x")}),
        (
            "CreateAgent",
            {"body": {"name": "a", "template": {"digest": DIGEST}, "parameters": "e30"}},
            {("body", "/parameters")},
        ),
        ("UpdateAgent", {"path": {"name": "a"}, "body": {"revision": 0}}, {("body", "/revision")}),
        ("UpdateAgent", {"path": {"name": "a"}, "body": {"revision": True}}, {("body", "/revision")}),
        ("UpdateAgent", {"path": {"name": "a"}, "body": {"revision": "01"}}, {("body", "/revision")}),
        ("UpdateAgent", {"path": {"name": "a"}, "body": {"revision": "7.0"}}, {("body", "/revision")}),
        ("UpdateAgent", {"path": {"name": "a"}, "body": {"revision": 7.5}}, {("body", "/revision")}),
        ("UpdateAgent", {"path": {"name": "a"}, "body": {"revision": 1e300}}, {("body", "/revision")}),
        ("CreateEnrollmentToken", {"body": {"maxUses": 1.5}}, {("body", "/maxUses")}),
        ("CreateEnrollmentToken", {"body": {"maxUses": 1e9}}, {("body", "/maxUses")}),
        ("CreateEnrollmentToken", {"body": {"maxUses": "5"}}, {("body", "/maxUses")}),
        ("CreateEnrollmentToken", {"body": {"maxUses": True}}, {("body", "/maxUses")}),
        ("Execute", {"body": {"execution": {"agent": "a"}}}, {("header", "Idempotency-Key")}),
        (
            "Execute",
            {"headers": {"idempotency-key": "k"}, "body": {"execution": {"agent": "a", "requestId": "k"}}},
            {("body", "/execution/requestId")},
        ),
        (
            "Execute",
            {
                "headers": {"idempotency-key": "k"},
                "body": {"execution": {"agent": "a", "inline": "", "bodyId": ""}},
            },
            {("body", "/execution")},
        ),
        (
            "Execute",
            {"headers": {"idempotency-key": "k" * 129}, "body": {"execution": {"agent": "a"}}},
            {("header", "Idempotency-Key")},
        ),
        (
            "Execute",
            {"headers": {"idempotency-key": "k"}, "body": {"execution": {"agent": "a", "runDeadline": "0s"}}},
            {("body", "/execution/runDeadline")},
        ),
        ("CreateEnrollmentToken", {"body": {"ttl": "-1s"}}, {("body", "/ttl")}),
    ],
)
def test_what_the_api_does_not_name_is_refused_by_name(name, parts, violations):
    assert violations == refusal(name, **parts)


@pytest.mark.parametrize(
    "body",
    [
        b'{"name":"a","name":"b"}',
        b"[]",
        b"{",
        b'{"name":NaN}',
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b"\xff",
        b'{"name":"a"} x',
    ],
)
def test_what_is_no_json_object_is_malformed(body):
    with pytest.raises(MalformedError):
        read("CreateAgent", body=body)


@given(st.integers(-(10**20), 10**20), st.integers(0, 10**19), st.integers(-(10**21), 10**21))
def test_a_pattern_of_decimals_matches_its_range_alone(low, width, number):
    pattern = re.compile(decimal_pattern(low, low + width))

    for value in (number, low - 1, low, low + width, low + width + 1):
        assert (low <= value <= low + width) == bool(pattern.fullmatch(str(value)))


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("0s", False),
        ("0.000000001s", True),
        ("1s", True),
        ("86399.999999999s", True),
        ("86400s", True),
        ("86400.000000001s", False),
        ("86401s", False),
        ("-1s", False),
        ("1", False),
        ("1m", False),
    ],
)
def test_durations_end_where_their_rules_do(text, fits):
    field = executions_pb2.ExecutionRequest.DESCRIPTOR.fields_by_name["run_deadline"]
    from control_plane.gateway.fields import rules_of  # noqa: PLC0415

    pattern = re.compile(duration_type(rules_of(field)).__metadata__[0].metadata[0].pattern)

    assert fits == bool(pattern.fullmatch(text))
