"""Host calls of one run on fakes, and what a guest would send and read."""

import base64
import json
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from data_plane.host_calls.domain import CallContext
from data_plane.host_calls.http_fetch import AllowedHttp, HttpPolicy
from data_plane.host_calls.llm_complete import LlmPolicy
from data_plane.metrics import NodeMetrics
from data_plane.orders.domain import AttemptRef
from shared.ids import ExecutionId, TenantId
from shared.limits import DEFAULT_LIMITS, Limits
from shared.manifest import NO_CAPABILITIES, Capabilities, HttpCapability
from shared.resources import NO_RESOURCES, ResourcesUsed
from tests.fakes.clock import FakeClock
from tests.fakes.host_calls import FakeControlPlane, FakeResolver, FakeSecrets, FakeTransport, fake_parts

ATTEMPT = AttemptRef(execution_id=ExecutionId("exe_1"), attempt_number=1, fencing_token=7)
TENANT = TenantId("tenant-a")
API = "https://api.test/v1/"
EVERYTHING = HttpPolicy(allowed=(AllowedHttp.parse("* https://api.test/"),))


def get(url: str = API, **changes: object) -> HttpCapability:
    return HttpCapability(**{"method": "GET", "url": url} | changes)


@dataclass
class World:
    """One run."""

    capabilities: Capabilities = NO_CAPABILITIES
    policy: HttpPolicy = EVERYTHING
    limits: Limits = DEFAULT_LIMITS
    is_repeatable: bool = False
    is_live: bool = True
    grants: frozenset[str] | None = None
    transport: object = field(default_factory=FakeTransport)
    resolver: FakeResolver = field(default_factory=lambda: FakeResolver(api_test="93.184.216.34"))
    control_plane: FakeControlPlane = field(default_factory=FakeControlPlane)
    secrets: FakeSecrets = field(default_factory=FakeSecrets)
    llm: LlmPolicy = field(default_factory=LlmPolicy)

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        parts = fake_parts(
            metrics=NodeMetrics(self.registry, FakeClock()),
            policy=self.policy,
            transport=self.transport,
            resolver=self.resolver,
            intents=self.control_plane,
            kv=self.control_plane,
            secrets=self.secrets,
            llm=self.llm,
        )
        grants = frozenset(self.capabilities.host_call_grants) if self.grants is None else self.grants
        context = CallContext(
            attempt=ATTEMPT,
            tenant_id=TENANT,
            capabilities=self.capabilities,
            grants=grants,
            limits=self.limits,
            is_repeatable=self.is_repeatable,
            key=bytes(32),
        )
        self.calls = parts.begin(context, lambda: self.is_live)

    async def raw(self, request: bytes, used: ResourcesUsed = NO_RESOURCES) -> dict[str, object]:
        """What the guest reads; with the log line under `log`."""
        reply = await self.calls.answer(request, used)
        answer = json.loads(reply.response)
        return answer | ({"log": reply.log} if reply.log else {})

    async def call(self, method: str, /, **params: object) -> dict[str, object]:
        return await self.raw(json.dumps({"method": method, "params": params}).encode())

    async def ok(self, method: str, /, **params: object) -> dict[str, object]:
        answer = await self.call(method, **params)
        assert "ok" in answer, answer
        return answer["ok"]

    async def refusal(self, method: str, /, **params: object) -> str:
        answer = await self.call(method, **params)
        assert "error" in answer, answer
        return answer["error"]["reason"]

    async def fetch(self, url: str = API, **params: object) -> dict[str, object]:
        return await self.ok("http.fetch", **{"method": "GET", "url": url} | params)

    async def fetch_refused(self, url: str = API, **params: object) -> str:
        return await self.refusal("http.fetch", **{"method": "GET", "url": url} | params)

    @property
    def denials(self) -> dict[tuple[str, str], int]:
        return {(one.method, one.reason): one.count for one in self.calls.conclude().denials}

    def counted(self, name: str, **labels: str) -> float | None:
        """What a metric says; None: nothing was counted so."""
        return self.registry.get_sample_value(f"agentfactory_node_{name}", labels)

    @property
    def recording(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.calls.conclude().recording.splitlines()]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
