"""Roles, rules, grants and issuers of tokens as values. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from shared.errors import PermissionDeniedError, TenantRequiredError
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
    """Also without an identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What an identity holds in one tenant."""

    tenant_id: TenantId
    roles: frozenset[Role]
    evicted: bool = False
    """A node whose identity was ended: its certificate is refused whatever its dates say."""


Bound = Mapping[TenantId, frozenset[Role]]
"""The roles of an identity and its groups, in each tenant where it holds any."""


def choose(identity: str, bound: Bound, wanted: str, default: TenantId) -> Grant:
    """Return what an identity holds in the tenant that it chose, or in the only one that it is bound in.

    Raises:
        PermissionDeniedError: It holds nothing in the tenant that it chose, whether that exists or not.
        TenantRequiredError: It chose none and is bound in several.
    """
    if wanted:
        roles = bound.get(TenantId(wanted))
        if not roles:
            raise PermissionDeniedError(f"{identity} holds no role in tenant {wanted!r}")
        return Grant(tenant_id=TenantId(wanted), roles=roles)
    if len(bound) > 1:
        named = sorted(bound)[:MAX_TENANTS_NAMED]
        raise TenantRequiredError(
            f"{identity} is bound in several tenants: {', '.join(named)}"
            + (" and more" if len(named) < len(bound) else "")
        )
    for tenant_id, roles in bound.items():
        return Grant(tenant_id=tenant_id, roles=roles)
    return Grant(tenant_id=default, roles=frozenset())


MAX_TENANTS_NAMED: Final = 16


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
