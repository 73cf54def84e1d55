"""Bearer tokens: JSON Web Tokens of known issuers become principals. Knows no role and no RPC."""

import base64
import binascii
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn, Protocol

import jwt
from jwt.types import Options

from control_plane.access.domain import CLOCK_LEEWAY, TokenIssuer
from shared.canonical import JsonObject, parse_strict
from shared.clock import Clock
from shared.errors import MalformedError, UnauthenticatedError
from shared.local_tokens import MAX_REASON_CHARS, MIN_REASON_CHARS
from shared.rpc.credentials import MAX_TENANT_CHARS, MAX_TOKEN_CHARS
from shared.rpc.identity import Principal

VERIFIED_LIFE: Final = timedelta(seconds=5)
"""How long a verified token is known without verifying it again."""

MAX_VERIFIED: Final = 4096
MAX_GROUPS: Final = 256
BREAK_GLASS_CLAIM: Final = "af_break_glass"
TENANT_CLAIM: Final = "af_tenant"
"""Binds a token to one tenant. It narrows and never widens, so it counts from every issuer."""

_SUBJECT: Final = re.compile(r"[!-~]{1,255}")
_GROUP: Final = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")
_PARTS: Final = 3
_OPTIONS: Final[Options] = {
    "require": ["exp", "iat", "aud", "iss", "sub"],
    # Not the library's: time is passed in here (check 6), and a subject has bounds of ours (check 8).
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "verify_sub": False,
}


class IssuerKeyring(Protocol):
    """The public keys of one issuer."""

    async def find(self, kid: str) -> jwt.PyJWK:
        """Return a key. Raises UnauthenticatedError when the issuer has none of this id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownIssuer:
    """An issuer with its keys."""

    issuer: TokenIssuer
    keys: IssuerKeyring


class JwtVerifier:
    """Implements `TokenVerifier` with JSON Web Tokens (RFC 7519, RFC 8725).

    Checks, each numbered in its error:

    1. At most `MAX_TOKEN_CHARS`, three parts of base64url, strict JSON in header and claims.
    2. The header names a key and no extension that would have to be understood (`crit`, `b64`).
    3. `iss` is a known issuer, to the letter, and the algorithm one that this issuer is pinned to.
    4. The key is one that this issuer publishes, made for this algorithm.
    5. The signature is that key's.
    6. `iat` is not in the future, `exp` not in the past, `nbf` past; the life is not longer than allowed.
    7. `aud` names this service.
    8. `sub` is printable and bounded.
    9. Groups are a bounded list of texts; the tenant, when there is one, a bounded text.
    10. A token for emergencies names its reason, is of an issuer that may issue one, and short-lived.
    """

    def __init__(self, *, issuers: Sequence[KnownIssuer], clock: Clock) -> None:
        self._issuers = {known.issuer.issuer: known for known in issuers}
        self._clock = clock
        self._verified: dict[bytes, tuple[Principal, float]] = {}

    async def verify(self, token: str) -> Principal:
        """See `TokenVerifier.verify`."""
        if len(token) > MAX_TOKEN_CHARS:
            _refuse(1, f"more than {MAX_TOKEN_CHARS} characters")
        name = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        seen = self._verified.get(name)
        if seen is not None and self._clock.monotonic() < seen[1]:
            _check_end(seen[0], self._clock.now())
            return seen[0]
        principal = await self._verify(token)
        self._remember(name, principal)
        return principal

    async def _verify(self, token: str) -> Principal:
        header, claims = _decode(token)
        kid = _key_id(header)
        known = self._issuers.get(_text(claims, "iss", 3))
        algorithm = header.get("alg")
        if known is None:
            _refuse(3, "its issuer is not known here")
        if algorithm not in known.issuer.algorithms:
            _refuse(3, f"its algorithm is not one of issuer {known.issuer.name}'s")
        key = await known.keys.find(kid)
        if key.algorithm_name != algorithm:
            _refuse(4, "its key is not made for its algorithm")
        verified = _signed(token, key, str(algorithm), known.issuer)
        expires_at = _check_times(verified, known.issuer, self._clock.now())
        return _principal(verified, known.issuer, expires_at)

    def _remember(self, name: bytes, principal: Principal) -> None:
        self._verified.pop(name, None)
        if len(self._verified) >= MAX_VERIFIED:
            self._verified.pop(next(iter(self._verified)))
        self._verified[name] = (principal, self._clock.monotonic() + VERIFIED_LIFE.total_seconds())


def _refuse(check: int, why: str) -> NoReturn:
    raise UnauthenticatedError(f"the token is refused (check {check}): {why}", hint="get a new token")


def _decode(token: str) -> tuple[JsonObject, JsonObject]:
    parts = token.split(".")
    if len(parts) != _PARTS or not all(parts):
        _refuse(1, "not three parts")
    try:
        header, claims = (_json(part) for part in parts[:2])
    except (MalformedError, ValueError, binascii.Error) as error:
        raise UnauthenticatedError(
            "the token is refused (check 1): header or claims do not decode", hint="get a new token"
        ) from error
    return header, claims


def _json(part: str) -> JsonObject:
    padded = part.encode("ascii") + b"=" * (-len(part) % 4)
    return parse_strict(base64.b64decode(padded, altchars=b"-_", validate=True), max_bytes=MAX_TOKEN_CHARS)


def _key_id(header: JsonObject) -> str:
    if "crit" in header or "b64" in header:
        _refuse(2, "its header asks for an extension")
    return _text(header, "kid", 2)


def _text(document: Mapping[str, Any], name: str, check: int) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value:
        _refuse(check, f"it names no {name}")
    return value


def _signed(token: str, key: jwt.PyJWK, algorithm: str, issuer: TokenIssuer) -> dict[str, Any]:
    """Return the claims under a good signature (checks 5 and 7)."""
    try:
        return jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=issuer.audience,
            issuer=issuer.issuer,
            options=_OPTIONS,
        )
    except jwt.InvalidAudienceError:
        _refuse(7, f"it is not meant for {issuer.audience}")
    except jwt.MissingRequiredClaimError as error:
        _refuse(5, f"it has no {error.claim}")
    except jwt.PyJWTError:
        _refuse(5, f"its signature is not of issuer {issuer.name}")


def _check_times(claims: Mapping[str, Any], issuer: TokenIssuer, now: datetime) -> datetime:
    issued, expires = _seconds(claims, "iat"), _seconds(claims, "exp")
    seconds, leeway = now.timestamp(), CLOCK_LEEWAY.total_seconds()
    if issued > seconds + leeway or ("nbf" in claims and _seconds(claims, "nbf") > seconds + leeway):
        _refuse(6, "it is not valid yet")
    if expires + leeway <= seconds:
        _refuse(6, "it has expired")
    if not 0 < expires - issued <= issuer.max_life.total_seconds():
        _refuse(6, f"it lives longer than {issuer.max_life}, or not at all")
    return datetime.fromtimestamp(expires, UTC)


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(6, f"its {name} is no time")
    if not 0 <= value <= _LAST:
        _refuse(6, f"its {name} is no time")
    return float(value)


_LAST: Final = datetime(9000, 1, 1, tzinfo=UTC).timestamp()


def _check_end(principal: Principal, now: datetime) -> None:
    if principal.expires_at is not None and principal.expires_at + CLOCK_LEEWAY <= now:
        _refuse(6, "it has expired")


def _principal(claims: Mapping[str, Any], issuer: TokenIssuer, expires_at: datetime) -> Principal:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
        _refuse(8, "its sub is not 1 to 255 printable characters")
    tenant = claims.get(TENANT_CLAIM, "")
    if not isinstance(tenant, str) or len(tenant) > MAX_TENANT_CHARS:
        _refuse(9, f"its {TENANT_CLAIM} is no tenant")
    reason = _break_glass(claims, issuer)
    return Principal(
        identity=f"oidc:{issuer.name}/{'break-glass/' if reason else ''}{subject}",
        issuer=issuer.name,
        groups=_groups(claims.get(issuer.groups_claim, []), issuer),
        tenant=tenant,
        expires_at=expires_at,
        break_glass=reason,
    )


def _break_glass(claims: Mapping[str, Any], issuer: TokenIssuer) -> str:
    if BREAK_GLASS_CLAIM not in claims:
        return ""
    reason, longest = claims[BREAK_GLASS_CLAIM], issuer.max_break_glass_life
    if longest is None:
        _refuse(10, f"issuer {issuer.name} may not break glass")
    if not isinstance(reason, str) or not MIN_REASON_CHARS <= len(reason) <= MAX_REASON_CHARS:
        _refuse(10, f"its reason has not {MIN_REASON_CHARS} to {MAX_REASON_CHARS} characters")
    if claims["exp"] - claims["iat"] > longest.total_seconds():
        _refuse(10, f"it lives longer than {longest}")
    return reason


def _groups(claim: Any, issuer: TokenIssuer) -> frozenset[str]:
    if not isinstance(claim, list) or len(claim) > MAX_GROUPS:
        _refuse(9, f"its {issuer.groups_claim} is not a list of at most {MAX_GROUPS} groups")
    if not all(isinstance(group, str) for group in claim):
        _refuse(9, f"its {issuer.groups_claim} holds something else than texts")
    # A name that no binding could have gives nothing, so it is left out and not an error.
    return frozenset(f"group:{issuer.name}/{group}" for group in claim if _GROUP.fullmatch(group))
