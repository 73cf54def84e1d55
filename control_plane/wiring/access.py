"""Who may call what, from settings."""

from control_plane.access.denials import AuditedDenials
from control_plane.access.rules import RULES
from control_plane.access.service import AccessService
from control_plane.access.store import PostgresGrantStore
from control_plane.wiring.base import Base


def build_access(base: Base) -> AccessService:
    return AccessService(
        rules=RULES,
        installation=base.found.installation,
        grants=PostgresGrantStore(base.database),
        denials=AuditedDenials(refusals=base.refusals, clock=base.clock, random=base.random),
        clock=base.clock,
    )
