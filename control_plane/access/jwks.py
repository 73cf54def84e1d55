"""The public keys of one token issuer: read again and again, kept while the source is away. Verifies nothing.

One loop owns the reading. Who asks for a key that is not there waits for a reading that begins after the
question, so that a token signed with a key published a moment ago is not refused.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NoReturn, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from control_plane.access.domain import TOKEN_ALGORITHMS
from shared.clock import Clock
from shared.errors import AgentFactoryError, MalformedError, UnauthenticatedError
from shared.logs import get_logger
from shared.signatures import MAX_RSA_BITS, MIN_RSA_BITS

logger = get_logger(__name__)

REFRESH_EVERY: Final = timedelta(minutes=5)
"""A key that its issuer takes back is refused after this time at the latest, if the source answers."""

MIN_INTERVAL: Final = timedelta(seconds=2)
"""Between two readings, however many unknown keys are asked for."""

WAIT_FOR_KEY: Final = timedelta(seconds=10)
MAX_WAITING: Final = 256
"""Calls that wait for one issuer's next reading; more are refused at once."""

MAX_KEYS: Final = 64
MAX_KID_CHARS: Final = 256
_KEY_TYPES: Final = ("RSA", "EC", "OKP")
"""Never `oct`: a shared secret."""


class KeySource(Protocol):
    """Where an issuer publishes its keys."""

    async def read(self) -> bytes:
        """Return a JWK set (RFC 7517 section 5), unverified, of bounded size, within a bounded time.

        Raises:
            UnavailableError: The source does not answer as it should.
        """


class IssuerKeys:
    """The keys of one issuer, by key id."""

    def __init__(self, *, name: str, source: KeySource, max_age: timedelta, clock: Clock) -> None:
        self._name = name
        self._source = source
        self._max_age = max_age.total_seconds()
        self._clock = clock
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._read_at = 0.0
        self._started = 0
        self._finished = 0
        self._wanted = asyncio.Event()
        self._done = asyncio.Event()
        self._waiting = 0

    async def find(self, kid: str) -> jwt.PyJWK:
        """Return the issuer's key of this id.

        Raises:
            UnauthenticatedError: It has none, or what is known of it is older than the stated age.
        """
        key = self._known(kid)
        if key is not None:
            return key
        if self._waiting >= MAX_WAITING:
            raise self._refused("too many calls wait for its keys")
        self._waiting += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(WAIT_FOR_KEY.total_seconds()):
                    key = await self._after_next_reading(kid)
        finally:
            self._waiting -= 1
        if key is None:
            raise self._refused("it publishes no such key")
        return key

    async def run(self) -> NoReturn:
        """Read the keys now, then every `REFRESH_EVERY` and when a key is missing."""
        while True:
            self._wanted.clear()
            self._started += 1
            await self._read()
            self._finished = self._started
            done, self._done = self._done, asyncio.Event()
            done.set()
            await asyncio.sleep(MIN_INTERVAL.total_seconds())
            with suppress(TimeoutError):
                async with asyncio.timeout((REFRESH_EVERY - MIN_INTERVAL).total_seconds()):
                    await self._wanted.wait()

    def _known(self, kid: str) -> jwt.PyJWK | None:
        if self._clock.monotonic() - self._read_at > self._max_age:
            return None
        return self._keys.get(kid)

    async def _after_next_reading(self, kid: str) -> jwt.PyJWK | None:
        # The reading under way may have begun before the key was published.
        enough = self._started + 1
        self._wanted.set()
        while self._finished < enough:
            await self._done.wait()
            key = self._known(kid)
            if key is not None:
                return key
            self._wanted.set()
        return None

    async def _read(self) -> None:
        try:
            keys = parse_keys(await self._source.read())
        except AgentFactoryError as error:
            # What is known goes on counting until `max_age`.
            logger.warning("keys of a token issuer not read", issuer=self._name, error=str(error))
            return
        self._keys, self._read_at = keys, self._clock.monotonic()

    def _refused(self, why: str) -> UnauthenticatedError:
        return UnauthenticatedError(
            f"the token's key is not one of issuer {self._name}: {why}",
            hint="get a new token; if that does not help, check that the issuer's keys can be reached",
        )


def parse_keys(document: bytes) -> Mapping[str, jwt.PyJWK]:
    """Return the signing keys in a JWK set that may sign tokens, by key id; others are left out.

    Raises:
        MalformedError: It is no JWK set, or has more than `MAX_KEYS` keys, or none that can be used: an empty
            answer must not turn everybody away.
    """
    try:
        keys = json.loads(document)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise MalformedError("not a JWK set") from error
    if not isinstance(keys, list) or len(keys) > MAX_KEYS:
        raise MalformedError(f"a JWK set without a list of keys, or with more than {MAX_KEYS}")
    found = {key.key_id: key for each in keys if (key := _usable(each)) is not None and key.key_id}
    if not found:
        raise MalformedError("a JWK set without a key that may sign tokens")
    return found


def _usable(document: Any) -> jwt.PyJWK | None:
    if not isinstance(document, dict) or not _may_sign(document):
        return None
    try:
        key = jwt.PyJWK.from_dict(document)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    return key if key.algorithm_name in TOKEN_ALGORITHMS and _is_strong(key.key) else None


def _may_sign(document: dict[str, Any]) -> bool:
    kid = document.get("kid")
    return (
        document.get("kty") in _KEY_TYPES
        and document.get("use", "sig") == "sig"
        and isinstance(kid, str)
        and 0 < len(kid) <= MAX_KID_CHARS
    )


def _is_strong(key: object) -> bool:
    return not isinstance(key, RSAPublicKey) or MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS
