"""A directory with one agent, and a policy that answers what it is told."""

from control_plane.agents.domain import ResolvedAgent
from control_plane.policy.domain import Decision, PolicyInput, Question
from shared.clock import Clock, Random
from shared.digests import sha256_digest
from shared.errors import NotFoundError
from shared.ids import DECISION, TenantId, new_id
from shared.limits import DEFAULT_LIMITS, RequestedLimits
from shared.manifest import NO_CAPABILITIES, Profile
from shared.schemas import JsonSchema
from tests.builders.executions import AGENT, MODULE, TEMPLATE


def resolved_agent(
    *, revision: int = 1, name: str = "redact", input_schema: JsonSchema | None = None
) -> ResolvedAgent:
    return ResolvedAgent(
        agent_id=AGENT,
        name=name,
        revision=revision,
        template_name="redact",
        template_version="1.0.0",
        template_digest=TEMPLATE,
        module_digest=MODULE,
        publisher_key_id="sha256:" + "0" * 64,
        parameters=b"{}",
        parameters_digest=sha256_digest(b"{}"),
        limits=RequestedLimits(),
        capabilities=NO_CAPABILITIES,
        media_type="application/json",
        profile=Profile("default"),
        retry_is_safe=False,
        input_schema=input_schema,
    )


class OneAgentDirectory:
    """Implements `AgentDirectory`; its memory may be stale on purpose."""

    def __init__(self, *, remembered: int = 1, current: int = 1) -> None:
        self.remembered = remembered
        self.current = current
        self.input_schema: JsonSchema | None = None

    async def resolve(self, tenant_id: TenantId, name: str) -> ResolvedAgent:
        if name != "redact":
            raise NotFoundError(f"there is no agent {name}")
        return resolved_agent(revision=self.remembered, input_schema=self.input_schema)

    async def refresh(self, tenant_id: TenantId, name: str) -> ResolvedAgent:
        self.remembered = self.current
        return await self.resolve(tenant_id, name)


class SaidPolicy:
    """Implements `Policy`."""

    def __init__(self, clock: Clock, random: Random, *, reason: str = "ALLOWED") -> None:
        self._clock = clock
        self._random = random
        self.reason = reason
        self.asked: list[PolicyInput] = []

    async def decide(self, question: Question, asked: PolicyInput) -> Decision:
        self.asked.append(asked)
        return Decision(
            decision_id=new_id(DECISION, self._clock, self._random),
            tenant_id=asked.subject.tenant_id,
            question=question,
            allowed=self.reason == "ALLOWED",
            reason=self.reason,
            input=b"{}",
            policy_digest=sha256_digest(b"policy"),
            limits=DEFAULT_LIMITS,
            decided_at=self._clock.now(),
        )


class OpenGate:
    """Implements `NodeGate` and `AuditGate`: says yes, or what it is told to say, and remembers who asked."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.refusal = refusal
        self.asked: list[tuple[str, str]] = []

    async def admit(self, *, identity: str, tenant_id: str, node_id: str, zone: str, stage: str) -> None:
        self._answer(stage, node_id)

    async def pull(self, *, identity: str, tenant_id: str, node_id: str, module_digest: str) -> None:
        self._answer("pull", node_id)

    async def read(self, subject: object, *, method: str) -> None:
        self._answer("read", method)

    def _answer(self, what: str, about: str) -> None:
        self.asked.append((what, about))
        if self.refusal is not None:
            raise self.refusal
