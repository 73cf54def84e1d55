"""Who is calling: SPIFFE ids and the caller of the RPC that runs now. Decides nothing about rights.

The interceptor in `shared/rpc/server.py` sets the caller; servicers read it with `caller()`.
"""

import re
from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import timedelta
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
class Caller:
    """The authenticated peer of an RPC, with what it may be."""

    identity: str
    """SPIFFE id; ``anonymous`` where a rule lets anybody in."""
    kind: IdentityKind | Literal["anonymous"]
    name: str
    """Last part of the SPIFFE id: a node's id, a service's or a caller's name."""
    tenant_id: TenantId
    roles: frozenset[str]

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


class Gatekeeper(Protocol):
    """Decides who may call what. Implemented by control_plane/access."""

    async def admit(self, method: str, identity: str | None) -> Admission:
        """Return the caller, or refuse. `identity` is the SPIFFE id of a verified certificate, or None.

        Raises:
            UnauthenticatedError: Nobody, or nobody known, calls.
            PermissionDeniedError: The caller may not, or there is no rule for the method.
        """


_caller: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Return the authenticated peer of the current RPC.

    Raises:
        UnauthenticatedError: Nobody was authenticated: no RPC runs here.
    """
    try:
        return _caller.get()
    except LookupError as error:
        raise UnauthenticatedError("there is no authenticated caller outside an rpc") from error


def set_caller(value: Caller) -> Token[Caller]:
    """Make `value` the caller of this task; only the server interceptor and tests do."""
    return _caller.set(value)


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
