"""Templates and agents, from settings."""

from control_plane.agents.service import AgentService
from control_plane.agents.servicer import AgentServicer
from control_plane.policy.service import PolicyService
from control_plane.templates.catalog import TemplateCatalog
from control_plane.templates.module_check import check_agent_module
from control_plane.templates.revocation import TemplateStopper
from control_plane.templates.service import TemplateService
from control_plane.templates.servicer import TemplateServicer
from control_plane.wiring.base import Base
from control_plane.wiring.policy import build_gate
from control_plane.wiring.stores import Stores


def build_templates(
    base: Base, stores: Stores, policy: PolicyService, catalog: TemplateCatalog, running: TemplateStopper
) -> TemplateServicer:
    service = TemplateService(
        database=base.database,
        store=stores.templates,
        publishers=base.keysets,
        check_module=check_agent_module,
        gate=build_gate(base, stores, policy),
        decisions=stores.decisions,
        audit=base.audit,
        running=running,
        clock=base.clock,
        random=base.random,
    )
    return TemplateServicer(service=service, catalog=catalog)


def build_agents(
    base: Base, stores: Stores, policy: PolicyService, catalog: TemplateCatalog
) -> AgentServicer:
    service = AgentService(
        database=base.database,
        store=stores.agents,
        values=stores.kv,
        templates=catalog,
        gate=build_gate(base, stores, policy),
        decisions=stores.decisions,
        audit=base.audit,
        clock=base.clock,
        random=base.random,
    )
    return AgentServicer(service)
