"""`http.fetch`: every check of every hop, and then the exchange. Talks to nothing but its ports."""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from data_plane.host_calls.addresses import IpNetwork, is_allowed, is_part_of, parse_networks
from data_plane.host_calls.domain import Call, CallContext, Params, Refusal, refused
from data_plane.host_calls.http_request import (
    ORIGIN_BOUND_HEADERS,
    Fetch,
    SecretUse,
    read_fetch,
    shown_headers,
)
from data_plane.host_calls.ports import HttpRequest, HttpResponse, HttpTransport, Resolver, UnsafeIntents
from data_plane.host_calls.secrets import Scrubber, Secret
from shared.errors import HostCallRefusedError
from shared.manifest import HTTP_METHODS, HttpCapability
from shared.urls import IpAddress, Url, parse_url, redirected

MAX_REDIRECTS: Final = 3
MAX_BODY_BYTES: Final = 512 * 1024
"""Of a response: in base64 it fits an answer."""
MAX_ADDRESSES: Final = 4
"""Of one name that are tried."""
IDEMPOTENCY_HEADER: Final = "idempotency-key"
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_KEEP_METHOD: Final = frozenset({307, 308})
_SEE_OTHER: Final = 303
ANY_METHOD: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedHttp:
    """One entry of the operator's policy: a method, or `*`, and a prefix of URLs."""

    method: str
    prefix: Url

    @classmethod
    def parse(cls, text: str) -> "AllowedHttp":
        """Read `METHOD URL`.

        Raises:
            HostCallRefusedError: The URL is none.
            ValueError: There are not two words, or the first is no method.
        """
        method, url = text.split(" ")
        if method not in {*HTTP_METHODS, ANY_METHOD}:
            raise ValueError(f"{method!r} is no method")
        return cls(method=method, prefix=parse_url(url))

    def permits(self, method: str, url: Url) -> bool:
        return self.method in {ANY_METHOD, method} and url.is_within(self.prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPolicy:
    """What the node's operator allows, whatever orders grant. Nothing by default."""

    allowed: tuple[AllowedHttp, ...] = ()
    networks: tuple[IpNetwork, ...] = ()
    """Beside public addresses; each must be named in the order's capability too."""


@dataclass(slots=True, kw_only=True)
class _Grant:
    """One capability of the order and what is left of it."""

    capability: HttpCapability
    prefix: Url
    networks: tuple[IpNetwork, ...]
    calls: int = 0
    bytes: int = 0

    def is_for(self, method: str, url: Url) -> bool:
        return self.capability.method == method and url.is_within(self.prefix)

    def room(self) -> int | None:
        """Bytes that are left; None: no bound. 0 also when no call is left."""
        capability = self.capability
        if capability.max_calls and self.calls >= capability.max_calls:
            return 0
        return max(0, capability.max_bytes - self.bytes) if capability.max_bytes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hop:
    """One request of a fetch: the first, or where a redirect led."""

    method: str
    url: Url
    headers: tuple[tuple[str, str | SecretUse], ...] = field(repr=False)
    body: bytes = field(repr=False)


class HttpFetcher:
    """The HTTP calls of one run.

    Of every hop, in this order; the first that fails is the answer:

    1. The method is granted at all (the caller's part).
    2. The URL has one reading (`parse_url`).
    3. A capability of the order is for the method and holds the URL.
    4. That capability has calls and bytes left.
    5. The node's operator allows method and URL.
    6. The lease is live, and an unsafe call is on record before it leaves.
    7. Every address of the name is public, or in a network that order and operator name.
    8. Secrets go only where they may.

    The connection is made to an address that was checked, never to the name.
    """

    def __init__(
        self,
        *,
        context: CallContext,
        policy: HttpPolicy,
        transport: HttpTransport,
        resolver: Resolver,
        intents: UnsafeIntents,
        is_lease_live: Callable[[], bool],
    ) -> None:
        self._context = context
        self._policy = policy
        self._transport = transport
        self._resolver = resolver
        self._intents = intents
        self._is_lease_live = is_lease_live
        self._grants = list(_grants(context.capabilities.http, policy))
        self._is_declared = False
        self.scrubber = Scrubber()

    async def fetch(self, call: Call, secrets: Mapping[str, Secret]) -> dict[str, object]:
        """Carry out one call; `secrets` are those the guest has handles of.

        Raises:
            HostCallRefusedError: A check failed, or the exchange did.
            UnavailableError: The control plane cannot record an unsafe call now.
        """
        fetch = read_fetch(Params(call.params))
        key = self._idempotency_key(call)
        try:
            async with asyncio.timeout(fetch.timeout.total_seconds()):
                url, response = await self._follow(fetch, key, secrets)
        except TimeoutError as error:
            raise refused(Refusal.TIMEOUT, f"no complete response within {fetch.timeout}") from error
        return self._shown(url, response)

    async def _follow(
        self, fetch: Fetch, key: str, secrets: Mapping[str, Secret]
    ) -> tuple[Url, HttpResponse]:
        hop = _Hop(method=fetch.method, url=fetch.url, headers=fetch.headers, body=fetch.body)
        for number in range(MAX_REDIRECTS + 1):
            response = await self._exchange(hop, key, secrets, is_first=number == 0)
            location = _location(response)
            if location is None:
                return hop.url, response
            hop = _next_hop(hop, response.status, location)
        raise refused(Refusal.TOO_MANY_REDIRECTS, f"more than {MAX_REDIRECTS} redirects")

    async def _exchange(
        self, hop: _Hop, key: str, secrets: Mapping[str, Secret], *, is_first: bool
    ) -> HttpResponse:
        grant = self._granted(hop)
        if not any(allowed.permits(hop.method, hop.url) for allowed in self._policy.allowed):
            raise refused(Refusal.NOT_ALLOWED_HERE, f"this node does not allow {hop.method} {hop.url}")
        await self._declare(hop)
        addresses = await self._addresses(hop.url, grant)
        headers = self._headers(hop, secrets, is_first=is_first)
        request = HttpRequest(
            method=hop.method,
            url=hop.url,
            headers=(*headers, (IDEMPOTENCY_HEADER, key)),
            body=hop.body,
        )
        # Names take time: the lease that was live before may not be any more.
        self._require_lease()
        room = grant.room()
        bound = MAX_BODY_BYTES if room is None else min(MAX_BODY_BYTES, room - len(hop.body))
        grant.calls += 1
        grant.bytes += len(hop.body)
        try:
            response = await self._transport.exchange(request, addresses, max_body_bytes=bound)
        except HostCallRefusedError as error:
            if error.refusal == Refusal.RESPONSE_TOO_LARGE:
                grant.bytes += bound
            raise
        grant.bytes += len(response.body)
        return response

    def _granted(self, hop: _Hop) -> _Grant:
        """Checks 3 and 4."""
        grants = [grant for grant in self._grants if grant.is_for(hop.method, hop.url)]
        if not grants:
            raise refused(Refusal.NOT_GRANTED, f"no capability for {hop.method} {hop.url}")
        for grant in grants:
            room = grant.room()
            if room is None or room > len(hop.body):
                return grant
        raise refused(
            Refusal.QUOTA_EXHAUSTED, f"no calls or bytes are left for {hop.method} {grants[0].prefix}"
        )

    async def _declare(self, hop: _Hop) -> None:
        """Check 6."""
        self._require_lease()
        if hop.method not in {"GET", "HEAD"} and not self._is_declared:
            await self._intents.declare(self._context.attempt)
            self._is_declared = True

    def _require_lease(self) -> None:
        if not self._is_lease_live():
            raise refused(Refusal.LEASE_NOT_HELD, "the attempt's lease has run out")

    async def _addresses(self, url: Url, grant: _Grant) -> tuple[IpAddress, ...]:
        """Check 7. One forbidden address among several refuses all: such a name is a trap or a mistake."""
        literal = url.address
        addresses = (literal,) if literal is not None else await self._resolver.resolve(url.host)
        if not addresses or not all(is_allowed(address, grant.networks) for address in addresses):
            raise refused(
                Refusal.ADDRESS_FORBIDDEN, f"{url.host} has an address that calls may not connect to"
            )
        return addresses[:MAX_ADDRESSES]

    def _headers(self, hop: _Hop, secrets: Mapping[str, Secret], *, is_first: bool) -> list[tuple[str, str]]:
        """Check 8."""
        headers = []
        for name, value in hop.headers:
            if isinstance(value, str):
                headers.append((name, value))
                continue
            secret = secrets.get(value.handle)
            if secret is None:
                raise refused(Refusal.SECRET_UNKNOWN, f"header {name} names no handle of this run")
            if secret.may_go_to(hop.url):
                self.scrubber.add(secret.value)
                headers.append((name, value.prefix + secret.value))
            elif is_first:
                raise refused(
                    Refusal.SECRET_NOT_FOR_URL, f"the secret of header {name} may not go to {hop.url}"
                )
        return headers

    def _idempotency_key(self, call: Call) -> str:
        # The same in each attempt of the execution (design.md, rule 6), as far as the guest repeats itself.
        text = f"idempotency\0{call.index}\0{call.digest}".encode()
        return hmac.new(self._context.key, text, hashlib.sha256).hexdigest()

    def _shown(self, url: Url, response: HttpResponse) -> dict[str, object]:
        headers = shown_headers(response.headers)
        encoding = headers.get("content-encoding", "identity").lower()
        if self.scrubber.is_armed and encoding != "identity":
            raise refused(Refusal.HTTP_INVALID, "the response is compressed, though that was not accepted")
        scrub = self.scrubber
        return {
            "status": response.status,
            "url": scrub.scrub_text(str(url)),
            "headers": {name: scrub.scrub_text(value) for name, value in headers.items()},
            "body_base64": base64.b64encode(scrub.scrub(response.body)).decode(),
        }


def _grants(capabilities: Iterable[HttpCapability], policy: HttpPolicy) -> Iterator[_Grant]:
    for capability in capabilities:
        try:
            prefix = parse_url(capability.url)
        except HostCallRefusedError:
            continue  # no URL that may be called is below one that has two readings
        # Both must name it: the publisher knows the service, the operator the network.
        networks = tuple(
            network
            for network in parse_networks(capability.addresses)
            if any(is_part_of(network, ours) for ours in policy.networks)
        )
        yield _Grant(capability=capability, prefix=prefix, networks=networks)


def _location(response: HttpResponse) -> str | None:
    if response.status not in _REDIRECTS:
        return None
    locations = [value for name, value in response.headers if name.lower() == "location"]
    if len(locations) > 1:
        raise refused(Refusal.HTTP_INVALID, "the response names more than one location")
    return locations[0] if locations else None


def _next_hop(hop: _Hop, status: int, location: str) -> _Hop:
    """RFC 9110, section 15.4: what is sent where a redirect leads."""
    url = redirected(hop.url, location)
    method, body, headers = hop.method, hop.body, hop.headers
    if (
        status not in _KEEP_METHOD
        and method not in {"GET", "HEAD"}
        and (status == _SEE_OTHER or method == "POST")
    ):
        method, body = "GET", b""
        headers = tuple(entry for entry in headers if not entry[0].startswith("content-"))
    if url.origin != hop.url.origin:
        headers = tuple(
            (name, value)
            for name, value in headers
            if isinstance(value, SecretUse) or name not in ORIGIN_BOUND_HEADERS
        )
    return _Hop(method=method, url=url, headers=headers, body=body)
