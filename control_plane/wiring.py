"""Second half of the composition root: settings → adapters → services. Starts nothing and holds no rule.

`main.py` runs what is built here; nothing else builds adapters.
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import agentfactory_engine
import grpc
from agentfactory.v1 import (
    agents_pb2_grpc,
    audit_pb2_grpc,
    executions_pb2_grpc,
    nodes_pb2_grpc,
    templates_pb2_grpc,
)
from prometheus_client import CollectorRegistry

from control_plane.access.denials import AuditedDenials
from control_plane.access.rules import RULES
from control_plane.access.service import AccessService
from control_plane.access.store import PostgresGrantStore
from control_plane.agents.directory import CachedAgentDirectory
from control_plane.agents.service import AgentService
from control_plane.agents.servicer import AgentServicer
from control_plane.agents.store import PostgresAgentStore
from control_plane.audit.service import AuditService
from control_plane.audit.servicer import AuditServicer
from control_plane.audit.store import PostgresAuditStore
from control_plane.audit.throttle import RefusalLog
from control_plane.call_turns import CallTurns
from control_plane.database.engine import PoolBounds, create_engine
from control_plane.database.migrate import require_current_schema
from control_plane.database.notifications import (
    Channel,
    Notifications,
    PostgresNotifier,
    Subscriptions,
)
from control_plane.database.unit_of_work import HeldConnection, PostgresDatabase
from control_plane.dispatch.options import DispatchOptions
from control_plane.dispatch.service import Dispatch
from control_plane.executions.admission import Admission, AdmissionBounds
from control_plane.executions.admission_store import PostgresQueueCount
from control_plane.executions.bodies import BodyService
from control_plane.executions.completions import Completions
from control_plane.executions.crowd import Crowd
from control_plane.executions.lease_store import PostgresLeaseStore
from control_plane.executions.service import ExecutionOptions, ExecutionService
from control_plane.executions.servicer import ExecutionServicer
from control_plane.executions.store import PostgresExecutionStore
from control_plane.installation.domain import DEFAULT_TENANT
from control_plane.installation.files import read_authority, read_root_key
from control_plane.installation.ports import FoundInstallation
from control_plane.installation.store import PostgresInstallationStore
from control_plane.keys.ca import BuiltinCertificateAuthority
from control_plane.keys.registry import KeysetRegistry
from control_plane.kv.domain import KvQuota
from control_plane.kv.store import PostgresKvStore
from control_plane.metrics import ControlMetrics, MeasuredAcceptor, MeasuredCompletions
from control_plane.nodes.service import NodeService
from control_plane.nodes.servicer import FleetServicer, NodeServicer
from control_plane.nodes.store import PostgresNodeStore
from control_plane.nodes.transfers import NodeTransfers
from control_plane.policy.builtin import builtin_policy
from control_plane.policy.gate import PolicyGate
from control_plane.policy.service import PolicyService
from control_plane.policy.store import PostgresDecisionLog
from control_plane.settings import ControlSettings
from control_plane.templates.catalog import TemplateCatalog
from control_plane.templates.module_check import check_agent_module
from control_plane.templates.revocation import TemplateStopper
from control_plane.templates.service import TemplateService
from control_plane.templates.servicer import TemplateServicer
from control_plane.templates.store import PostgresTemplateStore
from control_plane.upkeep import Housekeeping
from shared.clock import SystemClock, SystemRandom
from shared.errors import SettingsError
from shared.gathering import Gathering
from shared.ids import SESSION, new_id
from shared.key_files import read_private_key
from shared.keyset import KeyPurpose
from shared.paths import InstallationPaths
from shared.signatures import FileSigner


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What every service stands on."""

    settings: ControlSettings
    paths: InstallationPaths
    clock: SystemClock
    random: SystemRandom
    metrics: ControlMetrics
    registry: CollectorRegistry
    notifier: PostgresNotifier
    notifications: Notifications
    subscriptions: Subscriptions
    database: PostgresDatabase
    audit: PostgresAuditStore
    refusals: RefusalLog
    found: FoundInstallation
    authority: BuiltinCertificateAuthority
    keysets: KeysetRegistry


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What is served, and what runs beside it."""

    access: AccessService
    turns: CallTurns
    dispatch: Dispatch
    completions: Completions
    directory: CachedAgentDirectory
    register: Callable[[grpc.aio.Server], None]
    loops: tuple[Callable[[], Coroutine[Any, Any, NoReturn]], ...]
    stores: tuple[PostgresExecutionStore | PostgresLeaseStore | PostgresKvStore, ...]
    """They keep connections of their own."""


@asynccontextmanager
async def open_base(settings: ControlSettings) -> AsyncIterator[Base]:
    """Open what every service stands on, for the length of the block.

    Raises:
        DatabaseUnavailableError: Postgres is away or refuses the login.
        SettingsError: The schema is not this build's, or there is no installation.
        NotFoundError, KeyFileModeError, KeyFormatError: A key or certificate is missing or not usable.
    """
    engine = create_engine(
        settings.database_url.get_secret_value(),
        application="agentfactory-control-plane",
        bounds=PoolBounds(connections=settings.database_connections, wait=settings.database_wait),
    )
    clock, random, registry = SystemClock(), SystemRandom(), CollectorRegistry()
    subscriptions = Subscriptions(replica=random.token_bytes(8).hex())
    notifier = PostgresNotifier(HeldConnection(engine), subscriptions)
    database = PostgresDatabase(engine, notifier=notifier)
    try:
        await require_current_schema(engine)
        audit = PostgresAuditStore(database)
        paths = InstallationPaths(data_dir=settings.data_dir)
        if not paths.root_public_key.exists():
            raise SettingsError(
                f"{paths.data_dir} holds no installation",
                hint="run 'agentfactory init', or set AF_CONTROL_DATA_DIR",
            )
        store = PostgresInstallationStore()
        async with database.transaction() as tx:
            found = await store.found(tx)
        if found is None:
            raise SettingsError("the database holds no installation", hint="run 'agentfactory init'")
        yield Base(
            settings=settings,
            paths=paths,
            clock=clock,
            random=random,
            metrics=ControlMetrics(registry),
            registry=registry,
            notifier=notifier,
            notifications=Notifications(engine, subscriptions),
            subscriptions=subscriptions,
            database=database,
            audit=audit,
            refusals=RefusalLog(audit=audit, clock=clock, random=random),
            found=found,
            authority=read_authority(paths, clock),
            keysets=KeysetRegistry(
                database=database,
                store=store,
                root=read_root_key(paths),
                installation=found.installation,
                clock=clock,
            ),
        )
    finally:
        await database.close()


async def order_signer(base: Base) -> FileSigner:
    """Return the signer of orders.

    Raises:
        NotFoundError, KeyFileModeError, KeyFormatError: Its key is missing or not usable.
        UnknownKeyError, KeyRevokedError: The key is not in the keyset.
    """
    key = read_private_key(base.paths.order_key)
    keyset = await base.keysets.current()
    # An order by a key that nodes do not know would be refused by every one of them: better not to start.
    keyset.require(KeyPurpose.ORDER, key.key_id, base.clock.now())
    return FileSigner(key=key)


def build(base: Base, signer: FileSigner) -> Services:
    """Return everything that is served; nothing runs yet."""
    stores = _Stores.of(base)
    completions = MeasuredCompletions(base.metrics)
    dispatch = _dispatch(base, stores, completions, signer)
    policy = _policy(base)
    catalog = TemplateCatalog(database=base.database, store=stores.templates)
    directory = CachedAgentDirectory(database=base.database, agents=stores.agents, templates=catalog)
    admission = _admission(base)
    turns = CallTurns(clock=base.clock, has_backlog=admission.has_backlog)
    acceptor = MeasuredAcceptor(
        store=stores.executions,
        placer=dispatch.placer,
        metrics=base.metrics,
        admission=admission,
        gathering=Gathering(lambda: completions.waiting),
    )
    executions = ExecutionService(
        store=stores.executions,
        acceptor=acceptor,
        completions=completions,
        placer=dispatch.placer,
        agents=directory,
        policy=policy,
        clock=base.clock,
        random=base.random,
        options=ExecutionOptions(run_deadline=base.settings.default_run_deadline),
    )
    stopper = TemplateStopper(executions=stores.executions, placer=dispatch.placer, completions=completions)
    bodies = BodyService(store=stores.executions, clock=base.clock, random=base.random)
    servicers = _Servicers(
        executions=ExecutionServicer(
            executions,
            bodies,
            Crowd(service=executions, acceptor=acceptor, completions=completions, store=stores.executions),
        ),
        templates=_templates(base, stores, policy, catalog, stopper),
        agents=_agents(base, stores, policy, catalog),
        nodes=_node_servicer(base, stores, dispatch, catalog),
        fleet=FleetServicer(nodes=_node_service(base, stores, dispatch)),
        audit=AuditServicer(
            AuditService(base.audit, subscribe=partial(base.subscriptions.subscribed, Channel.AUDIT))
        ),
    )
    return Services(
        access=_access(base),
        turns=turns,
        dispatch=dispatch,
        completions=completions,
        directory=directory,
        register=servicers.register,
        loops=(
            base.notifier.run,
            base.notifications.run,
            acceptor.run,
            admission.run,
            turns.run,
            partial(completions.run, stores.executions),
            Housekeeping(stores.executions).run,
            base.refusals.run,
        ),
        stores=(stores.executions, stores.leases, stores.kv),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Servicers:
    executions: ExecutionServicer
    templates: TemplateServicer
    agents: AgentServicer
    nodes: NodeServicer
    fleet: FleetServicer
    audit: AuditServicer

    def register(self, server: grpc.aio.Server) -> None:
        executions_pb2_grpc.add_ExecutionServiceServicer_to_server(self.executions, server)
        templates_pb2_grpc.add_TemplateServiceServicer_to_server(self.templates, server)
        agents_pb2_grpc.add_AgentServiceServicer_to_server(self.agents, server)
        nodes_pb2_grpc.add_NodeServiceServicer_to_server(self.nodes, server)
        nodes_pb2_grpc.add_FleetServiceServicer_to_server(self.fleet, server)
        audit_pb2_grpc.add_AuditServiceServicer_to_server(self.audit, server)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stores:
    executions: PostgresExecutionStore
    leases: PostgresLeaseStore
    kv: PostgresKvStore
    nodes: PostgresNodeStore
    templates: PostgresTemplateStore
    agents: PostgresAgentStore
    decisions: PostgresDecisionLog

    @classmethod
    def of(cls, base: Base) -> "_Stores":
        executions = PostgresExecutionStore(
            base.database, audit=base.audit, clock=base.clock, random=base.random
        )
        return cls(
            executions=executions,
            leases=PostgresLeaseStore(
                base.database,
                executions=executions,
                audit=base.audit,
                clock=base.clock,
                random=base.random,
                kv_quota=KvQuota(max_keys=base.settings.kv_max_keys, max_bytes=base.settings.kv_max_bytes),
            ),
            kv=PostgresKvStore(base.database),
            nodes=PostgresNodeStore(database=base.database, audit=base.audit),
            templates=PostgresTemplateStore(),
            agents=PostgresAgentStore(),
            decisions=PostgresDecisionLog(),
        )


def _admission(base: Base) -> Admission:
    return Admission(
        counts=PostgresQueueCount(base.database, base.clock),
        bounds=AdmissionBounds(
            pending=base.settings.max_pending,
            pending_of_tenant=base.settings.max_pending_per_tenant,
            per_minute=base.settings.max_per_minute_per_tenant,
        ),
        clock=base.clock,
    )


def _policy(base: Base) -> PolicyService:
    source = builtin_policy(base.settings.allowed_http)
    return PolicyService(
        engine=agentfactory_engine.Policy(source.source, source.data_json),
        policy_digest=source.digest,
        observer=base.metrics,
        clock=base.clock,
        random=base.random,
    )


def _gate(base: Base, stores: _Stores, policy: PolicyService) -> PolicyGate:
    return PolicyGate(
        policy=policy,
        decisions=stores.decisions,
        audit=base.audit,
        database=base.database,
        clock=base.clock,
        random=base.random,
    )


def _access(base: Base) -> AccessService:
    return AccessService(
        rules=RULES,
        installation=base.found.installation,
        grants=PostgresGrantStore(base.database),
        denials=AuditedDenials(refusals=base.refusals, clock=base.clock, random=base.random),
        clock=base.clock,
    )


def _dispatch(base: Base, stores: _Stores, completions: Completions, signer: FileSigner) -> Dispatch:
    return Dispatch(
        leases=stores.leases,
        kv=stores.kv,
        bodies=stores.executions,
        nodes=stores.nodes,
        orders=stores.nodes,
        keysets=base.keysets,
        signer=signer,
        completions=completions,
        options=_dispatch_options(base),
        clock=base.clock,
        random=base.random,
        observer=base.metrics,
        gathering=Gathering(lambda: completions.waiting),
    )


def _templates(
    base: Base, stores: _Stores, policy: PolicyService, catalog: TemplateCatalog, running: TemplateStopper
) -> TemplateServicer:
    service = TemplateService(
        database=base.database,
        store=stores.templates,
        publishers=base.keysets,
        check_module=check_agent_module,
        gate=_gate(base, stores, policy),
        decisions=stores.decisions,
        audit=base.audit,
        running=running,
        clock=base.clock,
        random=base.random,
    )
    return TemplateServicer(service=service, catalog=catalog)


def _agents(base: Base, stores: _Stores, policy: PolicyService, catalog: TemplateCatalog) -> AgentServicer:
    service = AgentService(
        database=base.database,
        store=stores.agents,
        values=stores.kv,
        templates=catalog,
        gate=_gate(base, stores, policy),
        decisions=stores.decisions,
        audit=base.audit,
        clock=base.clock,
        random=base.random,
    )
    return AgentServicer(service)


def _node_service(base: Base, stores: _Stores, dispatch: Dispatch) -> NodeService:
    return NodeService(
        nodes=stores.nodes,
        leases=stores.leases,
        authority=base.authority,
        sessions=dispatch,
        installation=base.found.installation,
        default_tenant=DEFAULT_TENANT,
        refusals=base.refusals,
        clock=base.clock,
        random=base.random,
    )


def _node_servicer(base: Base, stores: _Stores, dispatch: Dispatch, catalog: TemplateCatalog) -> NodeServicer:
    transfers = NodeTransfers(
        leases=stores.leases,
        executions=stores.executions,
        templates=catalog,
        owners=stores.nodes,
        clock=base.clock,
        random=base.random,
    )
    return NodeServicer(
        nodes=_node_service(base, stores, dispatch),
        transfers=transfers,
        sessions=dispatch,
        installation=base.found.installation,
    )


def _dispatch_options(base: Base) -> DispatchOptions:
    settings = base.settings
    return DispatchOptions(
        installation=base.found.installation,
        epoch=base.found.epoch,
        replica_id=settings.replica_id or new_id(SESSION, base.clock, base.random),
        zone=settings.zone,
        lease=settings.lease,
        heartbeat_every=settings.heartbeat_every,
        order_life=settings.order_life,
        max_session_age=settings.max_session_age,
    )
