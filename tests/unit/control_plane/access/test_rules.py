"""The rules table against the contract: every RPC has a row, and every row is an RPC."""

import pkgutil
from datetime import timedelta
from importlib import import_module

import agentfactory.v1

from control_plane.access.domain import Audit, Reach, Role
from control_plane.access.rules import HEALTH_WATCH_DEADLINE, RULES
from control_plane.servers import SERVICES

FILES = [
    import_module(f"agentfactory.v1.{module.name}")
    for module in pkgutil.iter_modules(agentfactory.v1.__path__)
    if module.name.endswith("_pb2")
]
SERVICE_DESCRIPTORS = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
METHODS = {
    f"/{service.full_name}/{method.name}" for service in SERVICE_DESCRIPTORS for method in service.methods
}
OURS = {method: rule for method, rule in RULES.items() if method.startswith("/agentfactory.")}


def test_every_rpc_of_the_contract_has_a_rule_and_every_rule_an_rpc():
    assert set(OURS) == METHODS


def test_every_service_of_the_contract_is_named_to_health_and_reflection():
    assert set(SERVICES) == {service.full_name for service in SERVICE_DESCRIPTORS}


def test_only_enrollment_and_the_public_log_are_open_to_strangers():
    assert [method for method, rule in OURS.items() if rule.anonymous] == [
        "/agentfactory.v1.NodeService/EnrollNode",
        "/agentfactory.v1.AuditService/GetCheckpoint",
        "/agentfactory.v1.AuditService/GetLogTile",
    ]


def test_what_strangers_may_call_does_not_last():
    assert all(rule.deadline <= HEALTH_WATCH_DEADLINE for rule in RULES.values() if rule.anonymous)
    assert timedelta(0) < HEALTH_WATCH_DEADLINE <= timedelta(minutes=5)


def test_a_node_may_call_nothing_but_the_service_of_nodes():
    allowed = {method for method, rule in OURS.items() if Role.NODE in rule.roles}
    assert allowed
    assert all(method.startswith("/agentfactory.v1.NodeService/") for method in allowed)


def test_people_may_not_act_as_a_node():
    rules = [rule for method, rule in OURS.items() if ".NodeService/" in method and not rule.anonymous]
    assert all(rule.roles <= {Role.NODE, Role.COMPILER} for rule in rules)


def test_a_node_that_compiles_may_do_that_and_renew_its_certificate_and_nothing_else():
    allowed = {method for method, rule in OURS.items() if Role.COMPILER in rule.roles}
    assert allowed == {
        "/agentfactory.v1.NodeService/RenewNodeCertificate",
        "/agentfactory.v1.CompileService/ListCompilations",
        "/agentfactory.v1.CompileService/FetchModule",
        "/agentfactory.v1.CompileService/UploadCompiledArtifact",
    }
    compiling = [rule for method, rule in OURS.items() if ".CompileService/" in method]
    assert all(rule.roles == {Role.COMPILER} for rule in compiling)


def test_every_rule_has_a_deadline_and_every_refusal_of_ours_is_recorded():
    assert all(rule.deadline.total_seconds() > 0 for rule in RULES.values())
    assert all(rule.audit is not Audit.NONE for rule in OURS.values())


def test_only_these_look_beyond_the_callers_tenant():
    """Row security holds every other call to one tenant. Whoever adds one here says why in the rules."""
    beyond = {method.removeprefix("/agentfactory.v1.") for method, rule in OURS.items() if _is_beyond(rule)}
    own = tuple(
        f"{name}Service/" for name in ("Node", "Compile", "Key", "Policy", "Access", "Stop", "Engine")
    )
    assert {method for method in beyond if not method.startswith(own)} == {"AuditService/CheckEvidence"}
    assert not beyond & {"KeyService/GetKeyset", "PolicyService/GetDecision", "PolicyService/ListDecisions"}


def _is_beyond(rule):
    return rule.reach is not Reach.OWN_TENANT


def test_what_concerns_every_tenant_or_comes_from_a_node_is_not_held_to_one():
    for method, rule in OURS.items():
        if rule.of_installation or ".NodeService/" in method:
            assert rule.reach is Reach.EVERY_TENANT


def test_what_changes_something_is_recorded_in_full():
    changing = (
        "Create",
        "Update",
        "Delete",
        "Publish",
        "Retire",
        "Revoke",
        "Drain",
        "Evict",
        "Cancel",
        "Execute",
    )
    changes = [rule for method, rule in OURS.items() if method.rpartition("/")[2].startswith(changing)]
    assert changes
    assert all(rule.audit is Audit.ALL for rule in changes)
