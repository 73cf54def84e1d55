"""Dispatch and everything that serves nodes, from settings."""

from control_plane.compiled.service import CompiledService
from control_plane.dispatch.options import DispatchOptions
from control_plane.dispatch.service import Dispatch
from control_plane.engines.store import PostgresEngineDenialStore
from control_plane.executions.completions import Completions
from control_plane.installation.domain import DEFAULT_TENANT
from control_plane.log.node_proofs import NodeProofs
from control_plane.log.service import LogService
from control_plane.nodes.service import NodeService
from control_plane.nodes.servicer import NodeServicer
from control_plane.nodes.transfers import NodeTransfers
from control_plane.policy.gate import NodePolicyGate
from control_plane.templates.catalog import TemplateCatalog
from control_plane.wiring.base import Base
from control_plane.wiring.stores import Stores
from shared.gathering import Gathering
from shared.ids import SESSION, new_id
from shared.signatures import Signer


def build_dispatch(base: Base, stores: Stores, completions: Completions, signer: Signer) -> Dispatch:
    return Dispatch(
        leases=stores.leases,
        kv=stores.kv,
        bodies=stores.executions,
        nodes=stores.nodes,
        orders=stores.nodes,
        keysets=base.keysets,
        engines=PostgresEngineDenialStore(base.database),
        signer=signer,
        completions=completions,
        options=_dispatch_options(base),
        clock=base.clock,
        random=base.random,
        observer=base.metrics,
        tracer=base.tracer,
        gathering=Gathering(),
    )


def build_node_service(base: Base, stores: Stores, dispatch: Dispatch, gate: NodePolicyGate) -> NodeService:
    return NodeService(
        nodes=stores.nodes,
        leases=stores.leases,
        authority=base.authority,
        sessions=dispatch,
        installation=base.found.installation,
        default_tenant=DEFAULT_TENANT,
        refusals=base.refusals,
        gate=gate,
        clock=base.clock,
        random=base.random,
    )


def build_node_servicer(
    base: Base,
    stores: Stores,
    dispatch: Dispatch,
    catalog: TemplateCatalog,
    gate: NodePolicyGate,
    log: LogService,
    compiled: CompiledService,
) -> NodeServicer:
    transfers = NodeTransfers(
        leases=stores.leases,
        executions=stores.executions,
        templates=catalog,
        owners=stores.nodes,
        compiled=compiled,
        gate=gate,
        clock=base.clock,
        random=base.random,
    )
    return NodeServicer(
        nodes=build_node_service(base, stores, dispatch, gate),
        transfers=transfers,
        sessions=dispatch,
        proofs=NodeProofs(log=log, leases=stores.leases),
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
