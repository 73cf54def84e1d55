"""Every RPC of the contract that callers use has one route; the rule that makes them, and what is left out."""

import base64
from collections import Counter

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from pydantic import TypeAdapter, ValidationError

from control_plane.access.rules import RULES
from control_plane.gateway.api import Api
from control_plane.gateway.fields import KNOWN_RULES, input_type, rules_of
from control_plane.gateway.routes import Kind, caller_services, routes_of
from control_plane.servers import SERVICES
from shared.errors import NotFoundError
from shared.rpc.status import HTTP_BY_STATUS

WITHOUT_ROUTE = {"/agentfactory.v1.ExecutionService/StreamExecutions"}
"""Bidirectional: HTTP/1.1 has no such thing. SubmitExecution and WatchExecution do the same."""

API = Api.of_contract()
ROUTES = {route.name: route for route in API.routes}


def rpcs_of(service):
    return {
        f"/{service}/{method.name}" for method in descriptor_pool.Default().FindServiceByName(service).methods
    }


def test_every_rpc_for_callers_has_exactly_one_route():
    wanted = set().union(*(rpcs_of(service) for service in caller_services(SERVICES)))

    found = Counter(route.rpc for route in API.routes)

    assert wanted - WITHOUT_ROUTE == set(found)
    assert {1} == set(found.values())


def test_no_route_leads_to_what_nodes_alone_may_call():
    assert [
        route.rpc for route in API.routes if "NodeService" in route.rpc or "CompileService" in route.rpc
    ] == []


def test_every_route_has_a_deadline_of_its_rule():
    assert {route.rpc: RULES[route.rpc].deadline for route in API.routes} == API.deadlines


@pytest.mark.parametrize(
    ("name", "method", "path", "kind"),
    [
        ("ListAgents", "GET", "/v1/agents", Kind.UNARY),
        ("GetAgent", "GET", "/v1/agents/{name}", Kind.UNARY),
        ("CreateAgent", "POST", "/v1/agents", Kind.UNARY),
        ("UpdateAgent", "PATCH", "/v1/agents/{name}", Kind.UNARY),
        ("DeleteAgent", "DELETE", "/v1/agents/{name}", Kind.UNARY),
        ("Execute", "POST", "/v1/executions:execute", Kind.UNARY),
        ("SubmitExecution", "POST", "/v1/executions", Kind.UNARY),
        ("CancelExecution", "POST", "/v1/executions/{executionId}:cancel", Kind.UNARY),
        ("WatchExecution", "GET", "/v1/executions/{executionId}:watch", Kind.EVENTS),
        ("DownloadBody", "GET", "/v1/executions/{executionId}/bodies/{kind}", Kind.DOWNLOAD),
        ("UploadBody", "POST", "/v1/bodies", Kind.UPLOAD),
        ("PublishTemplate", "POST", "/v1/templates", Kind.UPLOAD),
        ("RetireTemplate", "POST", "/v1/templates/{template}:retire", Kind.UNARY),
        ("ListAuditEntries", "GET", "/v1/audit-entries", Kind.UNARY),
        ("WatchAuditEntries", "GET", "/v1/audit-entries:watch", Kind.EVENTS),
        ("ExportEvidence", "GET", "/v1/evidence:export", Kind.EVENTS),
        ("CheckEvidence", "GET", "/v1/evidence:check", Kind.EVENTS),
        ("EraseExecutions", "POST", "/v1/executions:erase", Kind.UNARY),
        ("CreateEnrollmentToken", "POST", "/v1/enrollment-tokens", Kind.UNARY),
    ],
)
def test_the_rule(name, method, path, kind):
    route = ROUTES[name]

    assert (method, path, kind) == (route.method, route.path, route.kind)


def test_two_rpcs_with_one_route_are_refused():
    with pytest.raises(ValueError, match="have one route"):
        routes_of(["agentfactory.v1.AgentService", "agentfactory.v1.AgentService"])


def messages_within(message, seen):
    if message.full_name not in seen and not message.full_name.startswith("google."):
        seen[message.full_name] = message
        for field in message.fields:
            if field.message_type is not None:
                messages_within(field.message_type, seen)
    return seen


def test_every_rule_of_a_request_is_said_in_openapi():
    """A rule that is not in the schemas makes the documentation promise what the control plane refuses."""
    messages = {}
    for route in API.routes:
        messages_within(route.request, messages)

    unknown = [
        f"{field.full_name}: {rule.name}"
        for message in messages.values()
        for field in message.fields
        for kind, named in rules_of(field).ListFields()
        if kind.message_type is not None and kind.name != "cel"
        for rule, _ in named.ListFields()
        if rule.name not in KNOWN_RULES.get(kind.name, ())
    ]

    assert unknown == []


def test_every_grpc_status_has_one_of_http():
    import grpc  # noqa: PLC0415

    assert set(grpc.StatusCode) == set(HTTP_BY_STATUS)


def test_every_reference_of_the_document_leads_somewhere():
    document = API.document(RULES)

    def references(node):
        if isinstance(node, dict):
            yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    for reference in set(references(document)):
        found = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in found, reference
            found = found[part]
    assert len(API.routes) == sum(len(operations) for operations in document["paths"].values())


def test_problem_of_a_typed_error_has_its_reason_and_status():
    from control_plane.gateway.problems import problem_of  # noqa: PLC0415

    problem = problem_of(NotFoundError("there is no agent x"))

    assert (problem.status, problem.reason, problem.detail) == (404, "NOT_FOUND", "there is no agent x")


def test_problem_of_a_bug_says_nothing_of_it():
    from control_plane.gateway.problems import problem_of  # noqa: PLC0415

    problem = problem_of(RuntimeError("password=hunter2"))

    assert (problem.status, problem.reason, problem.detail) == (500, "INTERNAL", "internal error")


BOUNDED_BYTES = {
    field.full_name: field
    for route in API.routes
    for message in messages_within(route.request, {}).values()
    for field in message.fields
    if field.type == FieldDescriptor.TYPE_BYTES and rules_of(field).bytes.HasField("max_len")
}


@pytest.mark.parametrize("name", sorted(BOUNDED_BYTES))
def test_no_base64_of_the_length_that_is_said_is_too_large(name):
    """Without padding the last group holds a byte or two more than one with it."""
    field = BOUNDED_BYTES[name]
    adapter = TypeAdapter(input_type(field, rules_of(field)))
    longest = adapter.json_schema()["maxLength"]
    bound = rules_of(field).bytes.max_len

    assert adapter.validate_python("A" * longest)
    exactly = base64.b64encode(bytes(bound)).decode()
    assert adapter.validate_python(exactly) == exactly
    with pytest.raises(ValidationError):
        adapter.validate_python(base64.b64encode(bytes(bound + 1)).decode())
