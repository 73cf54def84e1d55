"""Everything that is served, put together. Starts nothing and holds no rule.

`main.py` runs what is built here; nothing else builds adapters.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import grpc
from agentfactory.v1 import (
    access_pb2_grpc,
    agents_pb2_grpc,
    audit_pb2_grpc,
    engines_pb2_grpc,
    executions_pb2_grpc,
    keys_pb2_grpc,
    nodes_pb2_grpc,
    policy_pb2_grpc,
    replay_pb2_grpc,
    stops_pb2_grpc,
    templates_pb2_grpc,
)

from control_plane.access.service import AccessService
from control_plane.access.servicer import AccessServicer
from control_plane.agents.directory import CachedAgentDirectory
from control_plane.agents.servicer import AgentServicer
from control_plane.audit.servicer import AuditServicer
from control_plane.call_turns import CallTurns
from control_plane.compiled.servicer import CompileServicer
from control_plane.dispatch.service import Dispatch
from control_plane.engines.servicer import EngineServicer
from control_plane.executions.admission import Admission, AdmissionBounds, LlmBounds
from control_plane.executions.admission_store import PostgresQueueCount
from control_plane.executions.bodies import BodyService
from control_plane.executions.completions import Completions
from control_plane.executions.crowd import Crowd
from control_plane.executions.halting import Halter
from control_plane.executions.lease_store import PostgresLeaseStore
from control_plane.executions.service import ExecutionOptions, ExecutionService
from control_plane.executions.servicer import ExecutionServicer
from control_plane.executions.store import PostgresExecutionStore
from control_plane.executions.trails import ExecutionTrails
from control_plane.keys.servicer import KeyServicer
from control_plane.keys.signer import OrderSigner
from control_plane.kv.store import PostgresKvStore
from control_plane.metrics import MeasuredAcceptor, MeasuredCompletions
from control_plane.nodes.servicer import FleetServicer, NodeServicer
from control_plane.policy.active import ActivePolicy
from control_plane.policy.gate import NodePolicyGate
from control_plane.policy.servicer import PolicyServicer
from control_plane.replay.servicer import ReplayServicer
from control_plane.stops.servicer import StopServicer
from control_plane.templates.cached import CachedTemplates
from control_plane.templates.catalog import TemplateCatalog
from control_plane.templates.servicer import TemplateServicer
from control_plane.upkeep import Housekeeping
from control_plane.wiring.access import build_access
from control_plane.wiring.audit import build_audit, build_completeness
from control_plane.wiring.base import Base
from control_plane.wiring.body_keys import BodyKeyParts
from control_plane.wiring.compiled import build_compiled
from control_plane.wiring.engines import build_engines
from control_plane.wiring.factory import (
    build_agents,
    build_cached_templates,
    build_directory,
    build_stop_watch,
    build_stops,
    build_templates,
)
from control_plane.wiring.keys import build_keys
from control_plane.wiring.log import build_log
from control_plane.wiring.nodes import build_dispatch, build_node_service, build_node_servicer
from control_plane.wiring.policy import build_gate, build_policy, open_policies
from control_plane.wiring.replay import build_replay
from control_plane.wiring.stores import Stores
from control_plane.witnesses.ports import WitnessClient
from shared.gathering import Gathering


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What is served, and what runs beside it."""

    access: AccessService
    turns: CallTurns
    dispatch: Dispatch
    completions: Completions
    directory: CachedAgentDirectory
    signer: OrderSigner
    policy: ActivePolicy
    templates: CachedTemplates
    register: Callable[[grpc.aio.Server], None]
    loops: tuple[Callable[[], Coroutine[Any, Any, NoReturn]], ...]
    stores: tuple[PostgresExecutionStore | PostgresLeaseStore | PostgresKvStore | WitnessClient, ...]
    """They keep connections of their own."""


async def build(base: Base, signer: OrderSigner, body_keys: BodyKeyParts) -> Services:
    """Return everything that is served; nothing runs yet."""
    trails = ExecutionTrails(base.tracer)
    completions = MeasuredCompletions(base.metrics, trails)
    stores = Stores.of(base, body_keys.keyring, is_awaited=completions.is_awaited)
    dispatch = build_dispatch(base, stores, completions, signer)
    log_parts = build_log(base, signer)
    log = log_parts.log
    policies = await open_policies(base, stores, log)
    policy = build_policy(base, policies.active)
    gate = build_gate(base, stores, policy)
    node_gate = NodePolicyGate(gate)
    catalog = TemplateCatalog(database=base.database, store=stores.templates)
    templates = build_cached_templates(base, catalog)
    directory = build_directory(base, stores, catalog)
    base.metrics.watch_caches({"agents": directory.stats, "templates": templates.stats})
    admission = build_admission(base)
    turns = CallTurns(clock=base.clock, has_backlog=admission.has_backlog)
    acceptor = MeasuredAcceptor(
        store=stores.executions,
        placer=dispatch.placer,
        metrics=base.metrics,
        admission=admission,
        gathering=Gathering(),
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
        trails=trails,
    )
    halter = Halter(executions=stores.executions, placer=dispatch.placer, completions=completions)
    bodies = BodyService(store=stores.executions, clock=base.clock, random=base.random)
    access = build_access(base, body_keys.administration)
    completeness = build_completeness(base)
    compiled = build_compiled(base, catalog, node_gate)
    servicers = _Servicers(
        executions=ExecutionServicer(
            executions,
            bodies,
            Crowd(service=executions, acceptor=acceptor, completions=completions, store=stores.executions),
        ),
        templates=build_templates(base, stores, policy, catalog, halter, log),
        agents=build_agents(base, stores, policy, templates),
        nodes=build_node_servicer(base, stores, dispatch, catalog, node_gate, log, compiled),
        compile=CompileServicer(compiled),
        fleet=FleetServicer(nodes=build_node_service(base, stores, dispatch, node_gate)),
        stops=build_stops(base, stores, halter),
        audit=build_audit(base, stores, log_parts.log, gate, completeness),
        access=access.servicer,
        keys=build_keys(base, signer, dispatch),
        policy=policies.servicer,
        replay=build_replay(base, stores, catalog),
        engines=build_engines(base),
    )
    return Services(
        access=access.gatekeeper,
        turns=turns,
        dispatch=dispatch,
        completions=completions,
        directory=directory,
        signer=signer,
        policy=policies.active,
        templates=templates,
        register=servicers.register,
        loops=(
            base.notifier.run,
            base.notifications.run,
            acceptor.run,
            admission.run,
            turns.run,
            partial(completions.run, stores.executions),
            Housekeeping(stores.executions).run,
            build_stop_watch(base, stores, halter).run,
            base.refusals.run,
            access.run,
            signer.run,
            body_keys.keyring.run,
            log_parts.log.run,
            log_parts.witnesses.run,
            completeness.run,
            policies.active.run,
        ),
        stores=(stores.executions, stores.leases, stores.kv, log_parts.client),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Servicers:
    executions: ExecutionServicer
    templates: TemplateServicer
    agents: AgentServicer
    nodes: NodeServicer
    compile: CompileServicer
    fleet: FleetServicer
    stops: StopServicer
    audit: AuditServicer
    access: AccessServicer
    keys: KeyServicer
    policy: PolicyServicer
    replay: ReplayServicer
    engines: EngineServicer

    def register(self, server: grpc.aio.Server) -> None:
        executions_pb2_grpc.add_ExecutionServiceServicer_to_server(self.executions, server)
        templates_pb2_grpc.add_TemplateServiceServicer_to_server(self.templates, server)
        agents_pb2_grpc.add_AgentServiceServicer_to_server(self.agents, server)
        nodes_pb2_grpc.add_NodeServiceServicer_to_server(self.nodes, server)
        nodes_pb2_grpc.add_CompileServiceServicer_to_server(self.compile, server)
        nodes_pb2_grpc.add_FleetServiceServicer_to_server(self.fleet, server)
        stops_pb2_grpc.add_StopServiceServicer_to_server(self.stops, server)
        audit_pb2_grpc.add_AuditServiceServicer_to_server(self.audit, server)
        access_pb2_grpc.add_AccessServiceServicer_to_server(self.access, server)
        keys_pb2_grpc.add_KeyServiceServicer_to_server(self.keys, server)
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self.policy, server)
        engines_pb2_grpc.add_EngineServiceServicer_to_server(self.engines, server)
        replay_pb2_grpc.add_ReplayServiceServicer_to_server(self.replay, server)


def build_admission(base: Base) -> Admission:
    return Admission(
        counts=PostgresQueueCount(
            base.database,
            base.clock,
            LlmBounds(
                tokens_per_day=base.settings.llm_tokens_per_day,
                cost_micros_per_day=base.settings.llm_cost_micros_per_day,
            ),
        ),
        bounds=AdmissionBounds(
            pending=base.settings.max_pending,
            pending_of_tenant=base.settings.max_pending_per_tenant,
            per_minute=base.settings.max_per_minute_per_tenant,
        ),
        clock=base.clock,
    )
