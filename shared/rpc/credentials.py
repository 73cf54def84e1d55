"""What a peer presents with an RPC: its certificate's SPIFFE id, or a bearer token, and the tenant it chose.

Verifies nothing but the form: TLS has verified the certificate, the gatekeeper verifies the token.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from shared.errors import UnauthenticatedError

if TYPE_CHECKING:
    import grpc

AUTHORIZATION: Final = "authorization"
TENANT: Final = "af-tenant"
MAX_TOKEN_CHARS: Final = 8192
"""Below gRPC's bound of all metadata together."""

MAX_TENANT_CHARS: Final = 64

_SPIFFE_KEY: Final = "peer_spiffe_id"
_SCHEME: Final = "bearer "

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """What came with one RPC. At most one of certificate and token."""

    spiffe_id: str | None
    token: str | None = field(repr=False)
    tenant: str = ""


def presented(context: Context) -> Presented:
    """Return what the peer of an RPC presents. Only the handler has the certificate: not the call's details.

    Raises:
        UnauthenticatedError: It names several identities, presents a certificate and a token, or something
            in ``authorization`` that is no bearer token of at most `MAX_TOKEN_CHARS`.
    """
    spiffe_id = _spiffe_id(context)
    token: str | None = None
    tenant: str | None = None
    for key, value in context.invocation_metadata() or ():
        if key == AUTHORIZATION:
            if spiffe_id is not None:
                raise UnauthenticatedError(
                    "the call carries a certificate and a token", hint="present one of the two"
                )
            if token is not None:
                raise UnauthenticatedError("the call carries more than one token")
            token = _bearer(value)
        elif key == TENANT:
            if tenant is not None:
                raise UnauthenticatedError(f"the call names more than one tenant in {TENANT}")
            tenant = _text(value, MAX_TENANT_CHARS, TENANT)
    return Presented(spiffe_id=spiffe_id, token=token, tenant=tenant or "")


def bearer(token: str, tenant: str = "") -> tuple[tuple[str, str], ...]:
    """Return the metadata with which a caller presents a token, and chooses a tenant when it names one."""
    shown = ((AUTHORIZATION, f"Bearer {token}"),)
    return (*shown, (TENANT, tenant)) if tenant else shown


def _spiffe_id(context: Context) -> str | None:
    values = tuple(context.auth_context().get(_SPIFFE_KEY) or ())
    if not values:
        return None
    if len(values) != 1:
        raise UnauthenticatedError("the certificate names more than one spiffe id")
    try:
        return bytes(values[0]).decode("ascii")
    except UnicodeDecodeError as error:
        raise UnauthenticatedError("the certificate's spiffe id is not ascii") from error


def _bearer(value: str | bytes) -> str:
    text = _text(value, len(_SCHEME) + MAX_TOKEN_CHARS, AUTHORIZATION)
    if text[: len(_SCHEME)].lower() != _SCHEME:
        raise UnauthenticatedError(
            f"{AUTHORIZATION} is not of the form 'Bearer <token>'", hint="present a token of a known issuer"
        )
    return text[len(_SCHEME) :]


def _text(value: str | bytes, limit: int, name: str) -> str:
    if isinstance(value, bytes):
        raise UnauthenticatedError(f"{name} is not text")
    if len(value) > limit:
        raise UnauthenticatedError(f"{name} has more than {limit} characters")
    return value
