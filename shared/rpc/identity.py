"""Who is calling: principals, SPIFFE ids, the caller of the RPC that runs now. Decides nothing about rights.

The interceptor in `shared/rpc/server.py` sets the caller; servicers read it with `caller()`.
"""

import re
from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, Protocol

from shared.errors import UnauthenticatedError
from shared.ids import InstallationId, NodeId, TenantId

IdentityKind = Literal["node", "service", "caller"]

MAX_SPIFFE_ID_CHARS: Final = 2048
"""Bound of the SPIFFE specification (SPIFFE-ID section 2.1)."""

_SPIFFE_ID = re.compile(
    r"spiffe://(?P<installation>[a-z0-9][a-z0-9._-]{0,254})/(?P<kind>node|service|caller)/(?P<name>[A-Za-z0-9._-]{1,128})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpiffeId:
    """A parsed identity of one installation."""

    installation: InstallationId
    kind: IdentityKind
    name: str

    def __str__(self) -> str:
        return f"spiffe://{self.installation}/{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who a verified certificate or token says that the peer is; nothing of what it may do."""

    identity: str
    """SPIFFE id of a certificate, or ``oidc:<issuer name>/<subject>`` of a token."""
    issuer: str = ""
    """Name of the token's issuer in the settings; empty for a certificate."""
    groups: frozenset[str] = frozenset()
    """``group:<issuer name>/<group>``; of tokens only."""
    tenant: str = ""
    """The one tenant that a token was made for; empty: any in which its identity is bound."""
    expires_at: datetime | None = None
    """Of a token."""
    break_glass: str = ""
    """Why it has to be an administrator without a binding; empty, but for tokens made for emergencies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The authenticated peer of an RPC, with what it may be."""

    identity: str
    """SPIFFE id, or ``oidc:<issuer>/<subject>``; ``anonymous`` where a rule lets anybody in."""
    kind: IdentityKind | Literal["anonymous"]
    name: str
    """Last part of the identity: a node's id, a service's or a caller's name, a token's subject."""
    tenant_id: TenantId
    roles: frozenset[str]
    groups: frozenset[str] = frozenset()
    """Of its token."""

    @property
    def node_id(self) -> NodeId:
        """The calling node's id.

        Raises:
            UnauthenticatedError: The caller is no node.
        """
        if self.kind != "node":
            raise UnauthenticatedError(f"{self.identity} is not a node")
        return NodeId(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A caller that may go on, and for how long at most."""

    caller: Caller
    deadline: timedelta
    identified_for: timedelta | None = None
    """What is left of the caller's token: a stream does not outlive it. None: a certificate."""
    beyond_tenant: bool = False
    """The call may see rows of other tenants than the caller's."""


class Gatekeeper(Protocol):
    """Decides who may call what. Implemented by control_plane/access."""

    async def authenticate(self, method: str, token: str) -> Principal:
        """Return who a bearer token says that the peer is.

        Raises:
            UnauthenticatedError: It does not verify. The message never holds the token.
        """

    async def admit(self, method: str, principal: Principal | None, tenant: str = "") -> Admission:
        """Return the caller, or refuse. `principal` is None for a peer that proved no identity.

        `tenant` is the one that the peer chose; empty: it named none.

        Raises:
            UnauthenticatedError: Nobody, or nobody known, calls.
            PermissionDeniedError: The caller may not, or there is no rule for the method.
        """


_caller: ContextVar[Caller] = ContextVar("caller")
_forwarder: ContextVar[str] = ContextVar("forwarder", default="")
_confined_to: ContextVar[TenantId | None] = ContextVar("confined_to", default=None)


def caller() -> Caller:
    """Return the authenticated peer of the current RPC.

    Raises:
        UnauthenticatedError: Nobody was authenticated: no RPC runs here.
    """
    try:
        return _caller.get()
    except LookupError as error:
        raise UnauthenticatedError("there is no authenticated caller outside an rpc") from error


def confined_to() -> TenantId | None:
    """Return the tenant whose rows alone the current RPC may see; None: those of all, or no RPC runs here."""
    return _confined_to.get()


def forwarder() -> str:
    """Return who passed the current RPC on, as it says of itself; empty: nobody did, or no RPC runs here."""
    return _forwarder.get()


def set_forwarder(name: str) -> None:
    """Name who passed this task's RPC on; only the server interceptor and tests do."""
    _forwarder.set(name)


def set_caller(value: Caller) -> Token[Caller]:
    """Make `value` the caller of this task; only the server interceptor and tests do."""
    return _caller.set(value)


def set_admitted(admission: Admission) -> None:
    """Let this task act for who was admitted, and for nobody else; only the server interceptor does."""
    _caller.set(admission.caller)
    _confined_to.set(None if admission.beyond_tenant else admission.caller.tenant_id)


def reset_caller(token: Token[Caller]) -> None:
    """Undo `set_caller`."""
    _caller.reset(token)


def node_spiffe_id(installation: InstallationId, node_id: NodeId) -> str:
    """Return ``spiffe://<installation>/node/<node id>``."""
    return str(SpiffeId(installation=installation, kind="node", name=node_id))


def parse_spiffe_id(text: str) -> SpiffeId:
    """Return the parts of an identity.

    Raises:
        UnauthenticatedError: It is not ``spiffe://<installation>/{node,service,caller}/<name>``.
    """
    match = _SPIFFE_ID.fullmatch(text) if len(text) <= MAX_SPIFFE_ID_CHARS else None
    if match is None:
        raise UnauthenticatedError(
            f"{text[:128]!r} is not an identity of the form spiffe://<installation>/<kind>/<name>"
        )
    kind = match["kind"]
    assert kind in ("node", "service", "caller")
    return SpiffeId(
        installation=InstallationId(match["installation"]),
        kind=kind,  # type: ignore[arg-type]  # the expression admits these three only
        name=match["name"],
    )
