"""Tokens of the local issuer: a key in the data folder, its public half as a JWK set. Touches no file.

`agentfactory up` and `init` make the key; whoever may read it can be anybody that is bound to a name of this
issuer, as with the certificate authority's key beside it.
"""

import base64
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import jwt

from shared.ids import InstallationId
from shared.signatures import PrivateKey, PublicKey

ISSUER_NAME: Final = "local"
ALGORITHM: Final = "EdDSA"
MAX_LIFE: Final = timedelta(hours=24)
MAX_BREAK_GLASS_LIFE: Final = timedelta(hours=1)
MIN_REASON_CHARS: Final = 8
MAX_REASON_CHARS: Final = 256
_RAW_BYTES: Final = 32


def issuer_of(installation: InstallationId) -> str:
    """Return `iss` of an installation's local tokens."""
    return f"urn:agentfactory:{installation}"


def audience_of(installation: InstallationId) -> str:
    """Return `aud` that the control plane of an installation answers to."""
    return f"agentfactory:{installation}"


def identity_of(subject: str) -> str:
    """Return the identity of a local token with this subject, as bindings and audit name it."""
    return f"oidc:{ISSUER_NAME}/{subject}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """What a local token is to say."""

    installation: InstallationId
    subject: str
    tenant: str = ""
    break_glass: str = ""
    """Why its bearer has to be an administrator; empty: an ordinary token."""
    issued_at: datetime
    life: timedelta


def sign_token(key: PrivateKey, request: TokenRequest) -> str:
    """Return a signed token."""
    claims: dict[str, Any] = {
        "iss": issuer_of(request.installation),
        "aud": audience_of(request.installation),
        "sub": request.subject,
        "iat": int(request.issued_at.timestamp()),
        "exp": int((request.issued_at + request.life).timestamp()),
    }
    if request.tenant:
        claims["af_tenant"] = request.tenant
    if request.break_glass:
        claims["af_break_glass"] = request.break_glass
    return jwt.encode(claims, key.to_pem(), algorithm=ALGORITHM, headers={"kid": str(key.key_id)})


def key_set(*keys: PublicKey) -> bytes:
    """Return the JWK set (RFC 7517, RFC 8037) of Ed25519 keys."""
    entries = [
        {
            "kty": "OKP",
            "crv": "Ed25519",
            "use": "sig",
            "alg": ALGORITHM,
            "kid": str(key.key_id),
            # The last 32 bytes of an Ed25519 SubjectPublicKeyInfo are the key (RFC 8410 section 4).
            "x": base64.urlsafe_b64encode(key.spki_der[-_RAW_BYTES:]).rstrip(b"=").decode(),
        }
        for key in keys
    ]
    return json.dumps({"keys": entries}, indent=2).encode() + b"\n"
