"""Templates, agents and emergency stops, from settings."""

from control_plane.agents.directory import MAX_KNOWN_AGENTS, CachedAgentDirectory
from control_plane.agents.domain import ResolvedAgent
from control_plane.agents.rollouts import RolloutService
from control_plane.agents.service import AgentService
from control_plane.agents.servicer import AgentServicer
from control_plane.channels.service import ChannelService
from control_plane.executions.halting import Halter
from control_plane.log.ports import Inclusion
from control_plane.policy.service import PolicyService
from control_plane.stops.service import StopService
from control_plane.stops.servicer import StopServicer
from control_plane.stops.watch import StopWatch
from control_plane.templates.cached import (
    MAX_KNOWN_TEMPLATE_BYTES,
    MAX_KNOWN_TEMPLATES,
    CachedTemplates,
    weigh,
)
from control_plane.templates.catalog import TemplateCatalog
from control_plane.templates.domain import TemplateRef, TemplateVersion
from control_plane.templates.module_check import check_agent_module
from control_plane.templates.service import TemplateService
from control_plane.templates.servicer import TemplateServicer
from control_plane.wiring.base import Base
from control_plane.wiring.policy import build_gate
from control_plane.wiring.stores import Stores
from shared.cache import Cache, CacheBounds
from shared.ids import TenantId


def build_cached_templates(base: Base, catalog: TemplateCatalog) -> CachedTemplates:
    bounds = CacheBounds(
        entries=MAX_KNOWN_TEMPLATES, life=base.settings.cache_life, size_bytes=MAX_KNOWN_TEMPLATE_BYTES
    )
    cache = Cache[tuple[TenantId, TemplateRef], TemplateVersion](bounds=bounds, clock=base.clock, weigh=weigh)
    return CachedTemplates(catalog=catalog, cache=cache)


def build_directory(base: Base, stores: Stores, catalog: TemplateCatalog) -> CachedAgentDirectory:
    bounds = CacheBounds(entries=MAX_KNOWN_AGENTS, life=base.settings.cache_life)
    cache = Cache[tuple[TenantId, str], ResolvedAgent](bounds=bounds, clock=base.clock)
    return CachedAgentDirectory(database=base.database, agents=stores.agents, templates=catalog, cache=cache)


def build_templates(
    base: Base,
    stores: Stores,
    policy: PolicyService,
    catalog: TemplateCatalog,
    running: Halter,
    log: Inclusion,
) -> TemplateServicer:
    channels = ChannelService(
        database=base.database,
        store=stores.channels,
        agents=stores.agents,
        templates=catalog,
        gate=build_gate(base, stores, policy),
        decisions=stores.decisions,
        audit=base.audit,
        clock=base.clock,
        random=base.random,
    )
    service = TemplateService(
        database=base.database,
        store=stores.templates,
        publishers=base.keysets,
        check_module=check_agent_module,
        gate=build_gate(base, stores, policy),
        decisions=stores.decisions,
        audit=base.audit,
        running=running,
        log=log,
        clock=base.clock,
        random=base.random,
    )
    return TemplateServicer(service=service, catalog=catalog, channels=channels)


def build_agents(
    base: Base, stores: Stores, policy: PolicyService, templates: CachedTemplates
) -> AgentServicer:
    gate = build_gate(base, stores, policy)
    rollouts = RolloutService(
        database=base.database,
        store=stores.agents,
        templates=templates,
        gate=gate,
        decisions=stores.decisions,
        audit=base.audit,
        clock=base.clock,
        random=base.random,
    )
    service = AgentService(
        database=base.database,
        store=stores.agents,
        values=stores.kv,
        templates=templates,
        channels=stores.channels,
        gate=gate,
        decisions=stores.decisions,
        audit=base.audit,
        clock=base.clock,
        random=base.random,
    )
    return AgentServicer(service, rollouts)


def build_stops(base: Base, stores: Stores, halting: Halter) -> StopServicer:
    service = StopService(
        database=base.database,
        store=stores.stops,
        halting=halting,
        audit=base.audit,
        clock=base.clock,
        random=base.random,
        observer=base.metrics,
    )
    return StopServicer(service)


def build_stop_watch(base: Base, stores: Stores, halting: Halter) -> StopWatch:
    return StopWatch(database=base.database, store=stores.stops, halting=halting)
