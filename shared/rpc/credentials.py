"""What a peer presents with an RPC: its certificate's SPIFFE id, or a bearer token, and the tenant it chose.

Verifies nothing but the form: TLS has verified the certificate, the gatekeeper verifies the token.
"""

from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import grpc

from shared.errors import UnauthenticatedError

AUTHORIZATION: Final = "authorization"
TENANT: Final = "af-tenant"
MAX_TOKEN_CHARS: Final = 8192
"""Below gRPC's bound of all metadata together."""

FORWARDED_BY: Final = "x-forwarded-by"
"""Names the gateway that passes a call on: a claim without proof, which gives nothing and is recorded."""

MAX_TENANT_CHARS: Final = 64
MAX_FORWARDER_CHARS: Final = 64

_SPIFFE_KEY: Final = "peer_spiffe_id"
_SCHEME: Final = "bearer "

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """What came with one RPC. At most one of certificate and token."""

    spiffe_id: str | None
    token: str | None = field(repr=False)
    tenant: str = ""
    forwarded_by: str = ""


def presented(context: Context) -> Presented:
    """Return what the peer of an RPC presents. Only the handler has the certificate: not the call's details.

    Raises:
        UnauthenticatedError: It names several identities, presents a certificate and a token, or something
            in ``authorization`` that is no bearer token of at most `MAX_TOKEN_CHARS`.
    """
    spiffe_id = _spiffe_id(context)
    token: str | None = None
    tenant: str | None = None
    forwarded_by = ""
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
        elif key == FORWARDED_BY:
            forwarded_by = _text(value, MAX_FORWARDER_CHARS, FORWARDED_BY)
    return Presented(spiffe_id=spiffe_id, token=token, tenant=tenant or "", forwarded_by=forwarded_by)


def bearer(token: str, tenant: str = "") -> tuple[tuple[str, str], ...]:
    """Return the metadata with which a caller presents a token, and chooses a tenant when it names one."""
    shown = ((AUTHORIZATION, f"Bearer {token}"),)
    return (*shown, (TENANT, tenant)) if tenant else shown


def with_metadata(
    credentials: grpc.ChannelCredentials, metadata: tuple[tuple[str, str], ...]
) -> grpc.ChannelCredentials:
    """Return credentials of a channel whose every call carries this metadata."""
    return grpc.composite_channel_credentials(
        credentials, grpc.metadata_call_credentials(_Constant(metadata))
    )


class _Constant(grpc.AuthMetadataPlugin):
    def __init__(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._metadata = metadata

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        del context
        callback(self._metadata, None)


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
