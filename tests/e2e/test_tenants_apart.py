"""Nothing crosses between tenants: every RPC, with an administrator of one tenant and real ids of another.

And what an evicted node can still do: nothing, at once.
"""

import time
from collections.abc import Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from agentfactory.v1 import (
    access_pb2,
    agents_pb2,
    audit_pb2,
    common_pb2,
    engines_pb2,
    executions_pb2,
    keys_pb2,
    nodes_pb2,
    policy_pb2,
    replay_pb2,
    stops_pb2,
    templates_pb2,
)
from google.protobuf.message import Message

from cli.client import Client, connect
from cli.local_token import make_token
from cli.settings import CliSettings
from shared.local_tokens import MAX_LIFE, identity_of
from tests.bench.peers import postgres_server
from tests.e2e.stack import TestStack, eventually, running_stack
from tests.unit.control_plane.access.test_rules import SERVICE_DESCRIPTORS

AGENT = "theirs"
HALTED = "halted"
SECONDS = 30
WALLS = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED}


@dataclass(frozen=True)
class Theirs:
    """What the tenant `default` has."""

    execution_id: str
    receipt_id: str
    node_id: str
    template_digest: str
    audit_entry_id: str
    decision_id: str
    stop_id: str

    @property
    def secrets(self) -> list[bytes]:
        """What must not stand in any answer to another tenant."""
        names = (self.execution_id, self.receipt_id, self.node_id, self.audit_entry_id, self.decision_id)
        return [name.encode() for name in (*names, AGENT)]

    @property
    def template(self) -> templates_pb2.TemplateRef:
        return templates_pb2.TemplateRef(digest=self.template_digest)


@dataclass(frozen=True)
class Refused:
    """The request names something of the other tenant: NOT_FOUND or PERMISSION_DENIED."""

    request: Message


@dataclass(frozen=True)
class Blind:
    """The call succeeds, and nothing of the other tenant stands in the answer."""

    request: Message


@dataclass(frozen=True)
class Elsewhere:
    """No id of another tenant fits into the request, or another test looks at it."""

    why: str


Check = Refused | Blind | Elsewhere
_COMPILERS_ONLY = Elsewhere("for compiling nodes only: tests/e2e/test_compiled_elsewhere.py")
_NODES_ONLY = Elsewhere("for nodes only; whose attempt it is: tests/integration/dispatch/test_attacks.py")


def checks(theirs: Theirs) -> dict[str, Check]:
    """Return what is to be tried of each method. A new method fails the test until it stands here."""
    execution = executions_pb2.GetExecutionRequest(execution_id=theirs.execution_id)
    admin = {"identity": identity_of("mallory"), "role": access_pb2.ROLE_ADMIN, "tenant_id": "default"}
    run = executions_pb2.ExecutionRequest(agent=AGENT, request_id="r1", inline=b"{}")
    return {
        "AccessService/GetCallerIdentity": Blind(access_pb2.GetCallerIdentityRequest()),
        "AccessService/CreateRoleBinding": Refused(access_pb2.CreateRoleBindingRequest(**admin)),
        "AccessService/ListRoleBindings": Refused(access_pb2.ListRoleBindingsRequest(tenant_id="default")),
        "AccessService/DeleteRoleBinding": Refused(
            access_pb2.DeleteRoleBindingRequest(**admin | {"identity": identity_of("admin")})
        ),
        "AccessService/ExplainAccess": Refused(
            access_pb2.ExplainAccessRequest(
                identity=identity_of("admin"), method="GetAgent", tenant_id="default"
            )
        ),
        "AccessService/ExchangeBootstrapSecret": Refused(
            access_pb2.ExchangeBootstrapSecretRequest(secret="afb_" + "a" * 43)
        ),
        "AccessService/CreateTenant": Refused(access_pb2.CreateTenantRequest(tenant_id="mine")),
        "AccessService/GetTenant": Refused(access_pb2.GetTenantRequest(tenant_id="default")),
        "AccessService/ListTenants": Refused(access_pb2.ListTenantsRequest()),
        "AccessService/UpdateTenant": Refused(
            access_pb2.UpdateTenantRequest(tenant_id="default", max_pending=1)
        ),
        "AccessService/RotateBodyKey": Refused(access_pb2.RotateBodyKeyRequest(tenant_id="default")),
        "AccessService/EraseBodyKeys": Refused(
            access_pb2.EraseBodyKeysRequest(tenant_id="default", reason="test")
        ),
        "AgentService/CreateAgent": Refused(
            agents_pb2.CreateAgentRequest(name="mine", template=theirs.template)
        ),
        "AgentService/GetAgent": Refused(agents_pb2.GetAgentRequest(name=AGENT)),
        "AgentService/ListAgents": Blind(agents_pb2.ListAgentsRequest()),
        "AgentService/UpdateAgent": Refused(
            agents_pb2.UpdateAgentRequest(name=AGENT, parameters=b"{}", revision=1)
        ),
        "AgentService/DeleteAgent": Refused(agents_pb2.DeleteAgentRequest(name=AGENT)),
        "AuditService/ListAuditEntries": Blind(
            audit_pb2.ListAuditEntriesRequest(page=common_pb2.PageRequest(page_size=500))
        ),
        "AuditService/WatchAuditEntries": Refused(
            audit_pb2.WatchAuditEntriesRequest(after=theirs.audit_entry_id)
        ),
        "AuditService/GetReceipt": Refused(audit_pb2.GetReceiptRequest(receipt_id=theirs.receipt_id)),
        "ExecutionService/Execute": Refused(executions_pb2.ExecuteRequest(execution=run)),
        "ExecutionService/SubmitExecution": Refused(executions_pb2.SubmitExecutionRequest(execution=run)),
        "ExecutionService/StreamExecutions": Elsewhere("the same use case as SubmitExecution"),
        "ExecutionService/GetExecution": Refused(execution),
        "ExecutionService/ListExecutions": Blind(executions_pb2.ListExecutionsRequest()),
        "ExecutionService/WatchExecution": Refused(
            executions_pb2.WatchExecutionRequest(execution_id=theirs.execution_id)
        ),
        "ExecutionService/CancelExecution": Refused(
            executions_pb2.CancelExecutionRequest(execution_id=theirs.execution_id)
        ),
        "ExecutionService/UploadBody": Elsewhere("makes a body of the caller's own tenant, by no id"),
        "ExecutionService/DownloadBody": Refused(
            executions_pb2.DownloadBodyRequest(
                execution_id=theirs.execution_id, kind=executions_pb2.BODY_KIND_INPUT
            )
        ),
        "AgentService/RolloutAgent": Refused(
            agents_pb2.RolloutAgentRequest(name=AGENT, version="1.0.0", percent=10)
        ),
        "AgentService/RollbackAgent": Refused(agents_pb2.RollbackAgentRequest(name=AGENT)),
        "AgentService/CompareAgentVersions": Refused(agents_pb2.CompareAgentVersionsRequest(name=AGENT)),
        "AuditService/GetCheckpoint": Elsewhere("the log is one for all: its leaves are silent"),
        "AuditService/GetInclusionProof": Refused(
            audit_pb2.GetInclusionProofRequest(subject=theirs.receipt_id)
        ),
        "AuditService/GetConsistencyProof": Elsewhere("the log is one for all: its leaves are silent"),
        "AuditService/GetLogTile": Elsewhere("the log is one for all: its leaves are silent"),
        "AuditService/CheckEvidence": Refused(audit_pb2.CheckEvidenceRequest()),
        "AuditService/ExportEvidence": Blind(audit_pb2.ExportEvidenceRequest()),
        "AuditService/EraseExecutions": Refused(
            audit_pb2.EraseExecutionsRequest(execution_id=theirs.execution_id, reason="test")
        ),
        "EngineService/CreateEngineDenial": Refused(
            engines_pb2.CreateEngineDenialRequest(engine=engines_pb2.EngineRef(name="wasmer"), reason="test")
        ),
        "EngineService/ListEngineDenials": Refused(engines_pb2.ListEngineDenialsRequest()),
        "EngineService/DeleteEngineDenial": Refused(
            engines_pb2.DeleteEngineDenialRequest(engine=engines_pb2.EngineRef(name="wasmer"), reason="test")
        ),
        "NodeService/GetLogProof": _NODES_ONLY,
        "NodeService/FetchCompiledArtifact": _NODES_ONLY,
        "CompileService/ListCompilations": _COMPILERS_ONLY,
        "CompileService/FetchModule": _COMPILERS_ONLY,
        "CompileService/UploadCompiledArtifact": _COMPILERS_ONLY,
        "ReplayService/DownloadReplayMaterial": Refused(
            replay_pb2.DownloadReplayMaterialRequest(execution_id=theirs.execution_id)
        ),
        "StopService/GetStop": Refused(stops_pb2.GetStopRequest(stop_id=theirs.stop_id)),
        "KeyService/ListKeys": Refused(keys_pb2.ListKeysRequest()),
        "KeyService/GetKeyset": Elsewhere("public keys, which every node has"),
        "KeyService/PublishKeyset": Refused(keys_pb2.PublishKeysetRequest(envelope=b"{}")),
        "KeyService/CreateKey": Refused(keys_pb2.CreateKeyRequest(purpose=keys_pb2.KEY_PURPOSE_ORDER)),
        "KeyService/PublishFreshness": Refused(keys_pb2.PublishFreshnessRequest(statement=b"{}")),
        "PolicyService/PublishPolicyBundle": Refused(policy_pb2.PublishPolicyBundleRequest(envelope=b"{}")),
        "PolicyService/GetPolicyBundle": Refused(policy_pb2.GetPolicyBundleRequest()),
        "PolicyService/ListPolicyBundles": Refused(policy_pb2.ListPolicyBundlesRequest()),
        "PolicyService/ActivatePolicyBundle": Refused(
            policy_pb2.ActivatePolicyBundleRequest(expected_digest=theirs.template_digest)
        ),
        "PolicyService/RollbackPolicyBundle": Refused(
            policy_pb2.RollbackPolicyBundleRequest(expected_digest=theirs.template_digest)
        ),
        "PolicyService/TestPolicyBundle": Refused(policy_pb2.TestPolicyBundleRequest()),
        "PolicyService/ReplayDecisions": Refused(policy_pb2.ReplayDecisionsRequest()),
        "PolicyService/GetDecision": Refused(policy_pb2.GetDecisionRequest(decision_id=theirs.decision_id)),
        "PolicyService/ListDecisions": Blind(policy_pb2.ListDecisionsRequest()),
        "PolicyService/ReevaluateDecision": Refused(
            policy_pb2.ReevaluateDecisionRequest(decision_id=theirs.decision_id)
        ),
        "StopService/CreateStop": Refused(stops_pb2.CreateStopRequest(tenant_id="default", reason="test")),
        "StopService/ListStops": Blind(stops_pb2.ListStopsRequest()),
        "StopService/DeleteStop": Refused(stops_pb2.DeleteStopRequest(stop_id=theirs.stop_id)),
        "TemplateService/SetTemplateChannel": Refused(
            templates_pb2.SetTemplateChannelRequest(template_name=AGENT, channel="stable", version="1.0.0")
        ),
        "TemplateService/ListTemplateChannels": Blind(templates_pb2.ListTemplateChannelsRequest()),
        "NodeService/EnrollNode": Elsewhere("the token names the tenant"),
        "NodeService/RenewNodeCertificate": _NODES_ONLY,
        "NodeService/Session": _NODES_ONLY,
        "NodeService/FetchArtifact": _NODES_ONLY,
        "NodeService/FetchBody": _NODES_ONLY,
        "NodeService/UploadOutput": _NODES_ONLY,
        "FleetService/CreateEnrollmentToken": Blind(nodes_pb2.CreateEnrollmentTokenRequest()),
        "FleetService/ListNodes": Blind(nodes_pb2.ListNodesRequest()),
        "FleetService/GetNode": Refused(nodes_pb2.GetNodeRequest(node_id=theirs.node_id)),
        "FleetService/DrainNode": Refused(nodes_pb2.DrainNodeRequest(node_id=theirs.node_id)),
        "FleetService/EvictNode": Refused(nodes_pb2.EvictNodeRequest(node_id=theirs.node_id, reason="test")),
        "TemplateService/PublishTemplate": Elsewhere("makes a version of the caller's own tenant, by no id"),
        "TemplateService/GetTemplate": Refused(templates_pb2.GetTemplateRequest(template=theirs.template)),
        "TemplateService/ListTemplates": Blind(templates_pb2.ListTemplatesRequest()),
        "TemplateService/RetireTemplate": Refused(
            templates_pb2.RetireTemplateRequest(template=theirs.template)
        ),
        "TemplateService/RevokeTemplate": Refused(
            templates_pb2.RevokeTemplateRequest(template=theirs.template, reason="test")
        ),
    }


METHODS = {
    f"{service.name}/{method.name}": method for service in SERVICE_DESCRIPTORS for method in service.methods
}


async def answers(channel: grpc.aio.Channel, name: str, request: Message) -> Iterable[bytes]:
    """Call a method; return the answer, or answers, as they came."""
    path, sent = f"/agentfactory.v1.{name}", request.SerializeToString()
    if METHODS[name].server_streaming:
        return [one async for one in channel.unary_stream(path)(sent, timeout=SECONDS)]
    return [await channel.unary_unary(path)(sent, timeout=SECONDS)]


async def look(channel: grpc.aio.Channel, theirs: Theirs, name: str, check: Check) -> str | None:
    """Return what is wrong with a method, or None."""
    match check:
        case Refused(request):
            try:
                got = await answers(channel, name, request)
            except grpc.aio.AioRpcError as error:
                return None if error.code() in WALLS else f"{name}: {error.code()} {error.details()}"
            return f"{name} is served: {got!r}"
        case Blind(request):
            got = await answers(channel, name, request)
            return f"{name} shows {got!r}" if any(_shown(one, theirs) for one in got) else None
        case Elsewhere():
            return None


def _shown(answer: bytes, theirs: Theirs) -> bool:
    return any(secret in answer for secret in theirs.secrets)


@asynccontextmanager
async def mallory(stack: TestStack):
    """An administrator, with every other role, of the tenant `blue`."""
    async with stack.client() as admin:
        await admin.access.CreateTenant(access_pb2.CreateTenantRequest(tenant_id="blue"), timeout=SECONDS)
        for role in access_pb2.Role.values()[1:]:
            request = access_pb2.CreateRoleBindingRequest(
                identity=identity_of("mallory"), role=role, tenant_id="blue"
            )
            await admin.access.CreateRoleBinding(request, timeout=SECONDS)
    settings = CliSettings(
        data_dir=stack.paths.data_dir,
        target=f"localhost:{stack.ports.enroll}",
        token=make_token(stack.paths, subject="mallory", life=MAX_LIFE),
    )
    async with connect(settings) as client:
        yield client


async def theirs_of(stack: TestStack) -> Theirs:
    await stack.make_agent(AGENT)
    await stack.make_agent(HALTED)
    execution, _ = await stack.execute(AGENT, b"sleep 1")
    async with stack.client() as client:
        receipt = await client.audit.GetReceipt(
            audit_pb2.GetReceiptRequest(execution_id=execution.execution_id), timeout=SECONDS
        )
        assert not receipt.after_eviction
        agent = await client.agents.GetAgent(agents_pb2.GetAgentRequest(name=AGENT), timeout=SECONDS)
        entries = await client.audit.ListAuditEntries(audit_pb2.ListAuditEntriesRequest(), timeout=SECONDS)
        stop = await client.stops.CreateStop(
            stops_pb2.CreateStopRequest(template_name=HALTED, reason="test"), timeout=SECONDS
        )
    return Theirs(
        execution_id=execution.execution_id,
        receipt_id=receipt.receipt_id,
        node_id=stack.nodes[0].node_id,
        template_digest=agent.agent.template_digest,
        audit_entry_id=entries.audit_entries[0].audit_entry_id,
        decision_id=execution.decision_id,
        stop_id=stop.stop.stop_id,
    )


@pytest.mark.timeout(600)
async def test_nothing_crosses_between_tenants_and_an_evicted_node_is_out_at_once():
    async with running_stack(nodes=1) as stack:
        theirs = await theirs_of(stack)
        table = checks(theirs)
        assert set(table) == set(METHODS), "say for every method what an outsider may try"
        async with mallory(stack) as client:
            # Lists first: later they may show what the outsider itself asked for.
            ordered = sorted(table.items(), key=lambda item: not isinstance(item[1], Blind))
            wrong = [await look(client.channel, theirs, name, check) for name, check in ordered]
        assert [one for one in wrong if one] == []
        # The same requests are good ones: who is of the tenant is served.
        async with stack.client() as owner:
            served = ("AgentService/GetAgent", "AuditService/GetReceipt", "FleetService/GetNode")
            for name in (*served, "ExecutionService/DownloadBody", "TemplateService/GetTemplate"):
                check = table[name]
                assert isinstance(check, Refused)
                assert await answers(owner.channel, name, check.request)
            await evicted_at_once(stack, owner, theirs)


async def evicted_at_once(stack: TestStack, owner: Client, theirs: Theirs) -> None:
    """Evict the node in the middle of a run: its session ends, and its run is lost."""
    execution_id = await stack.submit(AGENT, b"sleep 60000")
    await stack.wait_until_running(execution_id)
    started = time.monotonic()
    request = nodes_pb2.EvictNodeRequest(node_id=theirs.node_id, reason="stolen")
    await owner.fleet.EvictNode(request, timeout=SECONDS)

    async def node() -> Any:
        get = nodes_pb2.GetNodeRequest(node_id=theirs.node_id)
        return (await owner.fleet.GetNode(get, timeout=SECONDS)).node

    await eventually(node, lambda one: not one.connected, "the end of the node's session")
    took = time.monotonic() - started
    print(f"an evicted node was out after {took * 1000:.0f} ms")  # noqa: T201 - a measured number
    assert took < 5
    state = (await node()).state
    assert state == nodes_pb2.NODE_STATE_EVICTED
    execution = await stack.get(execution_id)
    assert execution.state != executions_pb2.EXECUTION_STATE_RUNNING
    # What it signed before stays what it was; what came after is marked.
    assert not await _marked(owner, theirs)
    sql = await postgres_server.connect(stack.database.url())
    try:
        await sql.execute("UPDATE nodes SET evicted_at = evicted_at - interval '1 hour'")
    finally:
        await sql.close(timeout=5)
    assert await _marked(owner, theirs)


async def _marked(owner: Client, theirs: Theirs) -> bool:
    request = audit_pb2.GetReceiptRequest(receipt_id=theirs.receipt_id)
    return bool((await owner.audit.GetReceipt(request, timeout=SECONDS)).after_eviction)
