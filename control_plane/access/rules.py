"""The access rule of every RPC, as data. A test walks the descriptors: an RPC without a row is refused."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Final

from control_plane.access.domain import Audit, Reach, Role, Rule

READ_DEADLINE: Final = timedelta(seconds=15)
CHANGE_DEADLINE: Final = timedelta(seconds=30)
TRANSFER_DEADLINE: Final = timedelta(minutes=5)
WAIT_DEADLINE: Final = timedelta(hours=1)
"""Of one waiting call. The execution goes on behind it."""

STREAM_DEADLINE: Final = timedelta(hours=24)
"""Of one stream. The client opens the next."""

HEALTH_WATCH_DEADLINE: Final = timedelta(minutes=5)
"""Of a stream that anybody may open. The watcher opens the next."""

EVERY_ROLE: Final = frozenset(set(Role) - {Role.NODE, Role.COMPILER})
"""Every role of people and services; a node has its own few methods and nothing else."""

_WITH_CONTENTS: Final = frozenset({Role.ADMIN, Role.OPERATOR, Role.AUTHOR, Role.CALLER})
"""Who may see what agents read and wrote: neither viewers nor auditors need personal data."""

_AUTHORS: Final = frozenset({Role.ADMIN, Role.AUTHOR})
_OPERATORS: Final = frozenset({Role.ADMIN, Role.OPERATOR})
_FLEET_READERS: Final = frozenset({Role.ADMIN, Role.OPERATOR, Role.VIEWER, Role.AUDITOR})
_AUDITORS: Final = frozenset({Role.ADMIN, Role.OPERATOR, Role.AUDITOR})
_ACCESS_READERS: Final = frozenset({Role.ADMIN, Role.AUDITOR})
_CALLERS: Final = frozenset({Role.ADMIN, Role.AUTHOR, Role.CALLER})
_ADMINS: Final = frozenset({Role.ADMIN})
_NODES: Final = frozenset({Role.NODE})
_COMPILERS: Final = frozenset({Role.COMPILER})
_NOBODY: Final[frozenset[Role]] = frozenset()


def _read(roles: frozenset[Role], deadline: timedelta = READ_DEADLINE) -> Rule:
    return Rule(roles=roles, deadline=deadline, audit=Audit.DENIALS)


def _change(roles: frozenset[Role], deadline: timedelta = CHANGE_DEADLINE) -> Rule:
    return Rule(roles=roles, deadline=deadline, audit=Audit.ALL)


def _of_installation(rule: Rule) -> Rule:
    return replace(rule, of_installation=True, reach=Reach.EVERY_TENANT)


def _of_every_tenant(rule: Rule) -> Rule:
    return replace(rule, reach=Reach.EVERY_TENANT)


def _administered(rule: Rule) -> Rule:
    return replace(rule, reach=Reach.ADMINISTERED)


_TEMPLATES: Final = "/agentfactory.v1.TemplateService/"
_AGENTS: Final = "/agentfactory.v1.AgentService/"
_EXECUTIONS: Final = "/agentfactory.v1.ExecutionService/"
_NODE: Final = "/agentfactory.v1.NodeService/"
_COMPILE: Final = "/agentfactory.v1.CompileService/"
_FLEET: Final = "/agentfactory.v1.FleetService/"
_STOPS: Final = "/agentfactory.v1.StopService/"
_AUDIT: Final = "/agentfactory.v1.AuditService/"
_ACCESS: Final = "/agentfactory.v1.AccessService/"
_KEYS: Final = "/agentfactory.v1.KeyService/"
_POLICY: Final = "/agentfactory.v1.PolicyService/"
_ENGINES: Final = "/agentfactory.v1.EngineService/"
_REPLAY: Final = "/agentfactory.v1.ReplayService/"

RULES: Final[Mapping[str, Rule]] = {
    _TEMPLATES + "PublishTemplate": _change(_AUTHORS, TRANSFER_DEADLINE),
    _TEMPLATES + "GetTemplate": _read(EVERY_ROLE),
    _TEMPLATES + "ListTemplates": _read(EVERY_ROLE),
    _TEMPLATES + "RetireTemplate": _change(_AUTHORS),
    _TEMPLATES + "RevokeTemplate": _change(_ADMINS),
    _TEMPLATES + "SetTemplateChannel": _change(_AUTHORS),
    _TEMPLATES + "ListTemplateChannels": _read(EVERY_ROLE),
    _AGENTS + "CreateAgent": _change(_AUTHORS),
    _AGENTS + "GetAgent": _read(EVERY_ROLE),
    _AGENTS + "ListAgents": _read(EVERY_ROLE),
    _AGENTS + "UpdateAgent": _change(_AUTHORS),
    _AGENTS + "DeleteAgent": _change(_AUTHORS),
    _AGENTS + "RolloutAgent": _change(_AUTHORS),
    _AGENTS + "RollbackAgent": _change(_AUTHORS),
    _AGENTS + "CompareAgentVersions": _read(EVERY_ROLE),
    _EXECUTIONS + "Execute": _change(_CALLERS, WAIT_DEADLINE),
    _EXECUTIONS + "SubmitExecution": _change(_CALLERS),
    _EXECUTIONS + "StreamExecutions": _change(_CALLERS, STREAM_DEADLINE),
    _EXECUTIONS + "GetExecution": _read(EVERY_ROLE),
    _EXECUTIONS + "ListExecutions": _read(EVERY_ROLE),
    _EXECUTIONS + "WatchExecution": _read(EVERY_ROLE, STREAM_DEADLINE),
    _EXECUTIONS + "CancelExecution": _change(_CALLERS),
    _EXECUTIONS + "UploadBody": _change(_CALLERS, TRANSFER_DEADLINE),
    _EXECUTIONS + "DownloadBody": _read(_WITH_CONTENTS, TRANSFER_DEADLINE),
    # A node runs for every tenant.
    _NODE + "EnrollNode": _of_every_tenant(
        Rule(roles=_NOBODY, deadline=CHANGE_DEADLINE, audit=Audit.ALL, anonymous=True)
    ),
    _NODE + "RenewNodeCertificate": _of_every_tenant(_change(_NODES | _COMPILERS)),
    _NODE + "Session": _of_every_tenant(_change(_NODES, STREAM_DEADLINE)),
    _NODE + "FetchArtifact": _of_every_tenant(_read(_NODES, TRANSFER_DEADLINE)),
    _NODE + "FetchBody": _of_every_tenant(_read(_NODES, TRANSFER_DEADLINE)),
    _NODE + "UploadOutput": _of_every_tenant(_change(_NODES, TRANSFER_DEADLINE)),
    _NODE + "GetLogProof": _of_every_tenant(_read(_NODES)),
    _NODE + "FetchCompiledArtifact": _of_every_tenant(_read(_NODES, TRANSFER_DEADLINE)),
    _COMPILE + "ListCompilations": _of_every_tenant(_read(_COMPILERS)),
    _COMPILE + "FetchModule": _of_every_tenant(_read(_COMPILERS, TRANSFER_DEADLINE)),
    _COMPILE + "UploadCompiledArtifact": _of_every_tenant(_change(_COMPILERS, TRANSFER_DEADLINE)),
    _FLEET + "CreateEnrollmentToken": _change(_OPERATORS),
    _FLEET + "ListNodes": _read(_FLEET_READERS),
    _FLEET + "GetNode": _read(_FLEET_READERS),
    _FLEET + "DrainNode": _change(_OPERATORS),
    _FLEET + "EvictNode": _change(_OPERATORS),
    _AUDIT + "ListAuditEntries": _read(_AUDITORS),
    _AUDIT + "WatchAuditEntries": _read(_AUDITORS, STREAM_DEADLINE),
    _AUDIT + "ExportEvidence": _read(_AUDITORS, WAIT_DEADLINE),
    _AUDIT + "CheckEvidence": _of_installation(_read(_AUDITORS, WAIT_DEADLINE)),
    _AUDIT + "EraseExecutions": _change(_ADMINS),
    _AUDIT + "GetReceipt": _read(EVERY_ROLE),
    # Of all tenants in which the caller holds something.
    _ACCESS + "GetCallerIdentity": _of_every_tenant(
        Rule(roles=EVERY_ROLE, deadline=READ_DEADLINE, audit=Audit.DENIALS, identified=True)
    ),
    _ACCESS + "CreateRoleBinding": _administered(_change(_ADMINS)),
    _ACCESS + "ListRoleBindings": _administered(_read(_ACCESS_READERS)),
    _ACCESS + "DeleteRoleBinding": _administered(_change(_ADMINS)),
    _ACCESS + "ExplainAccess": _administered(_read(_ACCESS_READERS)),
    _ACCESS + "ExchangeBootstrapSecret": _of_every_tenant(
        Rule(roles=EVERY_ROLE, deadline=CHANGE_DEADLINE, audit=Audit.ALL, identified=True)
    ),
    # The use case asks for an admin of the tenant "default".
    _ACCESS + "CreateTenant": _administered(_change(_ADMINS)),
    _ACCESS + "GetTenant": _administered(_read(EVERY_ROLE)),
    _ACCESS + "ListTenants": _administered(_read(_ADMINS)),
    _ACCESS + "UpdateTenant": _administered(_change(_ADMINS)),
    _ACCESS + "RotateBodyKey": _administered(_change(_ADMINS)),
    _ACCESS + "EraseBodyKeys": _administered(_change(_ADMINS)),
    _KEYS + "ListKeys": _of_installation(_read(_FLEET_READERS)),
    _KEYS + "GetKeyset": _read(EVERY_ROLE),
    # Public: whoever checks the log need not be known to the installation.
    _AUDIT + "GetCheckpoint": replace(_read(EVERY_ROLE), anonymous=True),
    _AUDIT + "GetLogTile": replace(_read(EVERY_ROLE), anonymous=True),
    _AUDIT + "GetInclusionProof": _read(EVERY_ROLE),
    _AUDIT + "GetConsistencyProof": _read(EVERY_ROLE),
    _KEYS + "PublishKeyset": _of_installation(_change(_ADMINS)),
    _KEYS + "CreateKey": _of_installation(_change(_ADMINS)),
    _KEYS + "PublishFreshness": _of_installation(_change(_OPERATORS)),
    _POLICY + "PublishPolicyBundle": _of_installation(_change(_ADMINS)),
    _POLICY + "GetPolicyBundle": _of_installation(_read(_AUDITORS)),
    _POLICY + "ListPolicyBundles": _of_installation(_read(_AUDITORS)),
    _POLICY + "ActivatePolicyBundle": _of_installation(_change(_ADMINS)),
    _POLICY + "RollbackPolicyBundle": _of_installation(_change(_ADMINS)),
    _POLICY + "TestPolicyBundle": _of_installation(_read(_ADMINS, CHANGE_DEADLINE)),
    _POLICY + "ReplayDecisions": _of_installation(_read(_ADMINS, CHANGE_DEADLINE)),
    _POLICY + "GetDecision": _read(_AUDITORS),
    _POLICY + "ListDecisions": _read(_AUDITORS),
    _POLICY + "ReevaluateDecision": _read(_AUDITORS),
    _STOPS + "CreateStop": _administered(_change(_OPERATORS)),
    _STOPS + "GetStop": _administered(_read(_FLEET_READERS)),
    _STOPS + "ListStops": _administered(_read(_FLEET_READERS)),
    _STOPS + "DeleteStop": _administered(_change(_OPERATORS)),
    _REPLAY + "DownloadReplayMaterial": _read(_WITH_CONTENTS, TRANSFER_DEADLINE),
    _ENGINES + "CreateEngineDenial": _of_installation(_change(_OPERATORS)),
    _ENGINES + "ListEngineDenials": _of_installation(_read(_FLEET_READERS)),
    _ENGINES + "DeleteEngineDenial": _of_installation(_change(_OPERATORS)),
    # Not ours, but served beside them.
    "/grpc.health.v1.Health/Check": Rule(
        roles=_NOBODY, deadline=READ_DEADLINE, audit=Audit.NONE, anonymous=True
    ),
    "/grpc.health.v1.Health/Watch": Rule(
        roles=_NOBODY, deadline=HEALTH_WATCH_DEADLINE, audit=Audit.NONE, anonymous=True
    ),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _read(EVERY_ROLE, WAIT_DEADLINE),
}
