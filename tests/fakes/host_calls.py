"""Host calls without a network: names, connections, values and secrets in memory."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address

from prometheus_client import CollectorRegistry

from data_plane.host_calls.domain import Refusal, refused
from data_plane.host_calls.http_fetch import HttpPolicy
from data_plane.host_calls.ports import HttpRequest, HttpResponse, HttpTransport
from data_plane.host_calls.secrets import Secret
from data_plane.host_calls.service import HostCallParts
from data_plane.metrics import NodeMetrics
from data_plane.orders.domain import AttemptRef
from shared.errors import HostCallRefusedError
from shared.ids import TenantId
from shared.urls import IpAddress
from tests.fakes.clock import FakeClock

OK = HttpResponse(status=200, headers=(("content-type", "text/plain"),), body=b"hello")


def _ok(_: HttpRequest) -> HttpResponse:
    return OK


class FakeResolver:
    """Implements `Resolver`; a name may answer differently each time, as a hostile one does."""

    def __init__(self, **names: str) -> None:
        self.answers: dict[str, list[tuple[IpAddress, ...]]] = {}
        self.asked: Counter[str] = Counter()
        for name, addresses in names.items():
            self.name(name.replace("_", "."), addresses)

    def name(self, host: str, *answers: str) -> None:
        """Let a name have these addresses, separated by spaces, at first, then these, and so on."""
        self.answers[host] = [tuple(map(ip_address, answer.split())) for answer in answers]

    async def resolve(self, host: str) -> tuple[IpAddress, ...]:
        answers = self.answers.get(host)
        if not answers:
            raise refused(Refusal.NAME_NOT_RESOLVED, f"{host} is not resolved")
        self.asked[host] += 1
        return answers[min(self.asked[host], len(answers)) - 1]


class FakeTransport:
    """Implements `HttpTransport`: what answers is a function."""

    def __init__(self) -> None:
        self.requests: list[HttpRequest] = []
        self.tried: list[IpAddress] = []
        self.answer = _ok
        self.gate = asyncio.Event()
        self.gate.set()

    async def exchange(
        self, request: HttpRequest, addresses: tuple[IpAddress, ...], *, max_body_bytes: int
    ) -> HttpResponse:
        self.tried.append(addresses[0])
        self.requests.append(request)
        await self.gate.wait()
        response = self.answer(request)
        if len(response.body) > max_body_bytes:
            raise refused(Refusal.RESPONSE_TOO_LARGE, f"the body has more than {max_body_bytes} bytes")
        return response


class WatchedTransport:
    """A real transport, and the addresses that it was let connect to."""

    def __init__(self, inner: HttpTransport) -> None:
        self._inner = inner
        self.tried: list[IpAddress] = []

    async def exchange(
        self, request: HttpRequest, addresses: tuple[IpAddress, ...], *, max_body_bytes: int
    ) -> HttpResponse:
        self.tried.extend(addresses)
        return await self._inner.exchange(request, addresses, max_body_bytes=max_body_bytes)


@dataclass
class FakeControlPlane:
    """Implements `KvStore` and `UnsafeIntents`; every attempt holds its lease until a test says otherwise."""

    values: dict[str, bytes] = field(default_factory=dict)
    declared: list[AttemptRef] = field(default_factory=list)
    ended: set[AttemptRef] = field(default_factory=set)
    error: Exception | None = None

    async def get(self, attempt: AttemptRef, key: str) -> bytes | None:
        self._check(attempt)
        return self.values.get(key)

    async def declare(self, attempt: AttemptRef) -> None:
        self._check(attempt)
        self.declared.append(attempt)

    def _check(self, attempt: AttemptRef) -> None:
        if self.error is not None:
            raise self.error
        if attempt in self.ended:
            raise HostCallRefusedError("the lease is not held", refusal="LEASE_NOT_HELD")


@dataclass
class FakeSecrets:
    """Implements `SecretStore`."""

    secrets: dict[tuple[str, str], Secret] = field(default_factory=dict)

    async def find(self, tenant_id: TenantId, name: str) -> Secret | None:
        return self.secrets.get((tenant_id, name))


def fake_parts(**changes: object) -> HostCallParts:
    """What a node without a network has; nothing is allowed."""
    control_plane = FakeControlPlane()
    parts: dict[str, object] = {
        "policy": HttpPolicy(),
        "transport": FakeTransport(),
        "resolver": FakeResolver(),
        "intents": control_plane,
        "kv": control_plane,
        "secrets": FakeSecrets(),
        "metrics": NodeMetrics(CollectorRegistry(), FakeClock()),
    }
    return HostCallParts(**(parts | changes))  # type: ignore[arg-type]
