"""Asks the policy in force and makes decisions of its answers. Records nothing: use cases do."""

import json
from dataclasses import dataclass
from typing import Any, Final

from control_plane.policy.domain import PACKAGE, Decision, PolicyInput, Question
from control_plane.policy.memo import Memo
from control_plane.policy.ports import PolicyEngine, PolicyObserver
from shared.canonical import canonical_json
from shared.clock import Clock, Random
from shared.digests import Digest
from shared.ids import DECISION, new_id
from shared.limits import DEFAULT_LIMITS, LIMIT_FIELDS, Limits, requested_json
from shared.logs import get_logger
from shared.manifest import capabilities_json

logger = get_logger(__name__)

MAX_CACHED_ANSWERS: Final = 4096
"""Answers kept by bundle, question and input, of bundles that give equal inputs equal answers."""

UNDECIDED: Final = "POLICY_UNDECIDED"
"""Reason of a denial because the policy gave no valid answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    allowed: bool
    reason: str
    limits: Limits
    input: bytes


class PolicyService:
    """Implements `Policy`."""

    def __init__(
        self,
        *,
        engine: PolicyEngine,
        observer: PolicyObserver,
        clock: Clock,
        random: Random,
    ) -> None:
        self._engine = engine
        self._observer = observer
        self._clock = clock
        self._random = random
        self._answers = Memo[_Answer](capacity=MAX_CACHED_ANSWERS)

    @property
    def policy_digest(self) -> Digest:
        """Digest of the bundle in force."""
        return self._engine.digest

    async def decide(self, question: Question, asked: PolicyInput) -> Decision:
        """Return the answer; an engine that fails, or leaves it undefined, means denied, never an error.

        A remembered answer comes without a suspension; a denial for want of an answer is not remembered.
        """
        engine = self._engine
        key = (engine.digest, question, asked)
        answer = self._answers.get(key)
        if answer is None:
            answer = await self._evaluate(engine, question, asked)
            if engine.is_pure and answer.reason != UNDECIDED:
                self._answers.keep(key, answer)
        if not answer.allowed:
            self._observer.policy_denied(question, answer.reason)
        return Decision(
            decision_id=new_id(DECISION, self._clock, self._random),
            tenant_id=asked.subject.tenant_id,
            question=question,
            allowed=answer.allowed,
            reason=answer.reason,
            input=answer.input,
            policy_digest=engine.digest,
            limits=answer.limits,
            decided_at=self._clock.now(),
        )

    async def _evaluate(self, engine: PolicyEngine, question: Question, asked: PolicyInput) -> _Answer:
        canonical = canonical_json(_input_json(question, asked))
        try:
            evaluation = await engine.evaluate(f"data.{PACKAGE}.{question}", canonical.decode())
            return _answer_of(json.loads(evaluation.value_json), canonical)
        except Exception:  # fail closed, whatever an engine raises
            logger.exception("policy gave no valid answer", question=question, policy_digest=engine.digest)
            return _Answer(allowed=False, reason=UNDECIDED, limits=DEFAULT_LIMITS, input=canonical)


def _input_json(question: Question, asked: PolicyInput) -> dict[str, Any]:
    return {
        "question": str(question),
        "subject": {
            "identity": asked.subject.identity,
            "tenant_id": asked.subject.tenant_id,
            "roles": sorted(asked.subject.roles),
        },
        "template": {
            "name": asked.template_name,
            "version": asked.template_version,
            "digest": asked.template_digest,
            "publisher_key_id": asked.publisher_key_id,
        },
        "agent": asked.agent,
        "input_bytes": asked.input_bytes,
        "capabilities": capabilities_json(asked.capabilities),
        "limits": requested_json(asked.limits),
    }


def _answer_of(value: Any, canonical: bytes) -> _Answer:
    allowed, reason, limits = value["allowed"], value["reason"], value["limits"]
    if not isinstance(allowed, bool) or not isinstance(reason, str) or set(limits) != set(LIMIT_FIELDS):
        raise TypeError("the answer is not {allowed: bool, reason: string, limits: {every limit}}")
    if any(not isinstance(limit, int) or isinstance(limit, bool) or limit < 0 for limit in limits.values()):
        raise TypeError("a granted limit is not a whole number")
    return _Answer(allowed=allowed, reason=reason, limits=Limits(**limits), input=canonical)
