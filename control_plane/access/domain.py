"""Roles, rules and grants as values. No I/O."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from shared.ids import TenantId


class Role(StrEnum):
    """What an identity may be. Held as role bindings in Postgres; a node's comes with its enrollment."""

    ADMIN = "admin"
    OPERATOR = "operator"
    AUTHOR = "author"
    CALLER = "caller"
    NODE = "node"


class Audit(StrEnum):
    """Which calls of a method leave an audit entry."""

    NONE = "none"
    DENIALS = "denials"
    ALL = "all"
    """Denials here, and every change by the use case, in the transaction of the change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who may call a method, for how long at most, and what is recorded."""

    roles: frozenset[Role]
    deadline: timedelta
    audit: Audit
    anonymous: bool = False
    """Also without a certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an identity holds."""

    tenant_id: TenantId
    roles: frozenset[Role]
    evicted: bool = False
    """A node whose identity was ended: its certificate is refused whatever its dates say."""
