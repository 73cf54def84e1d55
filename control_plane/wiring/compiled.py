"""Builds what keeps compiled artifacts."""

from control_plane.compiled.service import CompiledService
from control_plane.compiled.store import PostgresCompiledStore
from control_plane.policy.gate import NodePolicyGate
from control_plane.templates.catalog import TemplateCatalog
from control_plane.wiring.base import Base


def build_compiled(base: Base, catalog: TemplateCatalog, gate: NodePolicyGate) -> CompiledService:
    return CompiledService(
        store=PostgresCompiledStore(base.database, base.audit),
        modules=catalog,
        keysets=base.keysets,
        gate=gate,
        installation=base.found.installation,
        bound_bytes=base.settings.max_compiled_bytes,
        clock=base.clock,
        random=base.random,
    )
