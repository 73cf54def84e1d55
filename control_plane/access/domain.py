"""Roles, rules, grants and issuers of tokens as values. No I/O."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from control_plane.audit.domain import printable
from shared.errors import InvalidInputError, PermissionDeniedError, TenantRequiredError
from shared.ids import InstallationId, TenantId


class Role(StrEnum):
    """What an identity may be. Held as role bindings in Postgres; a node's comes with its enrollment."""

    VIEWER = "viewer"
    CALLER = "caller"
    AUTHOR = "author"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    ADMIN = "admin"
    NODE = "node"
    COMPILER = "compiler"
    """A node that compiles: as much as `NODE` its enrollment's, and bound to nobody."""


OF_NODES: Final = frozenset({Role.NODE, Role.COMPILER})
"""Roles that come with an enrollment, and in no other way."""


class Audit(StrEnum):
    """Which calls of a method leave an audit entry."""

    NONE = "none"
    DENIALS = "denials"
    ALL = "all"
    """Denials here, and every change by the use case, in the transaction of the change."""


class Reach(StrEnum):
    """Whose rows a call may see and change. Postgres holds it to that, whatever its statements say."""

    OWN_TENANT = "own tenant"
    ADMINISTERED = "administered"
    """The caller's tenant; from the tenant `default` every one."""
    EVERY_TENANT = "every tenant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who may call a method, for how long at most, and what is recorded."""

    roles: frozenset[Role]
    deadline: timedelta
    audit: Audit
    anonymous: bool = False
    """Also without an identity."""
    identified: bool = False
    """Also to an identity without a role, but no node's."""
    of_installation: bool = False
    """It concerns every tenant: the roles count in the tenant `default` only."""
    reach: Reach = Reach.OWN_TENANT


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an identity holds in one tenant."""

    tenant_id: TenantId
    roles: frozenset[Role]
    evicted: bool = False
    """A node whose identity was ended: its certificate is refused whatever its dates say."""


Bound = Mapping[TenantId, frozenset[Role]]
"""The roles of an identity and its groups, in each tenant where it holds any."""


def choose(identity: str, bound: Bound, wanted: str, default: TenantId, home: TenantId | None) -> Grant:
    """Return what an identity holds in the tenant that it chose; without a choice, in its home.

    The home is where its calls without a choice have counted so far; the only tenant in which it is bound
    becomes that. Whatever others bind it in later changes nothing for calls that choose none.

    Raises:
        PermissionDeniedError: It holds nothing in the tenant that it chose, whether that exists or not.
        TenantRequiredError: It chose none, and is bound in others than its home, or in several without one.
    """
    if wanted:
        roles = bound.get(TenantId(wanted))
        if not roles:
            raise PermissionDeniedError(f"{identity} holds no role in tenant {wanted!r}")
        return Grant(tenant_id=TenantId(wanted), roles=roles)
    if home is not None and home in bound:
        return Grant(tenant_id=home, roles=bound[home])
    if not bound:
        return Grant(tenant_id=default, roles=frozenset())
    named = sorted(bound)[:MAX_TENANTS_NAMED]
    where = ", ".join(named) + (" and more" if len(named) < len(bound) else "")
    if home is not None:
        raise TenantRequiredError(f"{identity} holds nothing in tenant {home} any more, but in: {where}")
    raise TenantRequiredError(f"{identity} is bound in several tenants: {where}")


MAX_TENANTS_NAMED: Final = 16


DEFAULT_TENANT: Final = TenantId("default")
"""Its administrators look after the installation."""

_SUBJECTS: Final = re.compile(
    r"spiffe://(?P<installation>[a-z0-9][a-z0-9._-]{0,254})/(?:caller|service)/[A-Za-z0-9._-]{1,128}"
    r"|oidc:[a-z][a-z0-9-]{0,31}/[!-~]{1,255}"
    r"|group:[a-z][a-z0-9-]{0,31}/[!-~](?:[ -~]{0,253}[!-~])?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleBinding:
    """A role that an identity, or a group, holds in a tenant."""

    tenant_id: TenantId
    identity: str
    role: Role
    created_by: str = ""
    """Identity that gave it; empty: `init` did."""
    created_at: datetime | None = None
    """Postgres' time; None before it is stored."""


def check_subject(identity: str, installation: InstallationId) -> str:
    """Return `identity` if a role may be bound to it.

    Raises:
        InvalidInputError: It is neither a caller's or service's SPIFFE id of this installation, nor an
            identity or a group of a token issuer. A node is what its enrollment makes it.
    """
    match = _SUBJECTS.fullmatch(identity)
    if match is None or match["installation"] not in {None, installation}:
        raise InvalidInputError(
            f"{printable(identity[:128])!r} cannot hold a role",
            hint=f"name spiffe://{installation}/caller/NAME, oidc:ISSUER/SUBJECT or group:ISSUER/GROUP",
        )
    return identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Whom templates, agents, executions and bindings belong to."""

    tenant_id: TenantId
    display_name: str = ""
    max_pending: int | None = None
    """None: what the settings say."""
    executions_per_minute: int | None = None
    created_at: datetime | None = None
    encrypt_bodies: bool = False
    llm_tokens_per_day: int | None = None
    llm_cost_micros_per_day: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantChange:
    """What changes of a tenant; None: it stays. A quota of zero: what the settings say."""

    display_name: str | None = None
    max_pending: int | None = None
    executions_per_minute: int | None = None
    encrypt_bodies: bool | None = None
    llm_tokens_per_day: int | None = None
    llm_cost_micros_per_day: int | None = None

    def apply(self, tenant: Tenant) -> Tenant:
        """Return the tenant as it becomes."""
        return replace(
            tenant,
            llm_tokens_per_day=_quota(self.llm_tokens_per_day, tenant.llm_tokens_per_day),
            llm_cost_micros_per_day=_quota(self.llm_cost_micros_per_day, tenant.llm_cost_micros_per_day),
            display_name=tenant.display_name if self.display_name is None else self.display_name,
            max_pending=tenant.max_pending if self.max_pending is None else self.max_pending or None,
            executions_per_minute=tenant.executions_per_minute
            if self.executions_per_minute is None
            else self.executions_per_minute or None,
            encrypt_bodies=tenant.encrypt_bodies if self.encrypt_bodies is None else self.encrypt_bodies,
        )


def _quota(changed: int | None, before: int | None) -> int | None:
    return before if changed is None else changed or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why an identity may call a method, or may not."""

    allowed: bool
    method: str
    tenant_id: TenantId
    needed: frozenset[Role]
    by: tuple[RoleBinding, ...]
    held: tuple[RoleBinding, ...]
    reason: str


def explain(
    *, method: str, rule: Rule, tenant_id: TenantId, identity: str, held: tuple[RoleBinding, ...]
) -> Explanation:
    """Return what `rule` makes of the bindings that an identity and its groups hold in a tenant."""
    away = rule.of_installation and tenant_id != DEFAULT_TENANT
    by = () if away else tuple(binding for binding in held if binding.role in rule.roles)
    needed = ", ".join(sorted(rule.roles))
    if rule.anonymous:
        reason = "everybody may call it, without an identity"
    elif rule.identified:
        reason = "every identity but a node's may call it"
    elif away:
        reason = f"it concerns every tenant: {needed} of tenant {DEFAULT_TENANT} only"
    elif by:
        reason = "it holds " + ", ".join(f"{one.role} as {one.identity}" for one in by)
    elif rule.roles <= OF_NODES:
        reason = "only an enrolled node may call it; no binding can make one"
    else:
        reason = f"{identity} holds none of the roles {needed} in tenant {tenant_id}"
    return Explanation(
        allowed=bool(by) or rule.anonymous or rule.identified,
        method=method,
        tenant_id=tenant_id,
        needed=rule.roles,
        by=by,
        held=held,
        reason=reason,
    )


TOKEN_ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
"""Signatures by a key that only the issuer holds; never a shared secret (HS256), never `none`."""

MAX_TOKEN_LIFE: Final = timedelta(hours=24)
CLOCK_LEEWAY: Final = timedelta(seconds=30)
"""How far the clocks of an issuer and of this service may be apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIssuer:
    """One issuer whose tokens count, and what is asked of them."""

    name: str
    """Stands in identities: ``oidc:<name>/<subject>``."""
    issuer: str
    """`iss` of its tokens, to the letter."""
    audience: str
    algorithms: frozenset[str]
    groups_claim: str = "groups"
    max_life: timedelta = MAX_TOKEN_LIFE
    """Longest time from `iat` to `exp`."""
    max_break_glass_life: timedelta | None = None
    """The same of tokens for emergencies; None: it may issue none."""


def is_trusted_url(url: str) -> bool:
    """Whether keys may be read from a URL: by https, or from this very machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if not host or parts.username or parts.password:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in {"127.0.0.1", "::1", "localhost"})
