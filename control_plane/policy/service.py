"""Asks the policy in force and makes decisions of its answers. Records nothing: use cases do."""

from dataclasses import dataclass
from typing import Final

from control_plane.policy.answers import NOT_LOADED, UNDECIDED, Answer, ask
from control_plane.policy.domain import Asked, Decision, Question
from control_plane.policy.memo import Memo
from control_plane.policy.ports import InForce, PolicyInForce, PolicyObserver
from shared.canonical import canonical_json
from shared.clock import Clock, Random
from shared.digests import Digest, sha256_digest
from shared.ids import DECISION, new_id
from shared.logs import get_logger

logger = get_logger(__name__)

MAX_CACHED_ANSWERS: Final = 4096
"""Answers kept by bundle, question and input, of bundles that give equal inputs equal answers."""

MAX_TRIES: Final = 3
"""Questions that are asked anew because another policy came into force meanwhile; then denied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """An answer with what it was given to."""

    answer: Answer
    input: bytes
    input_digest: Digest
    result_digest: Digest


class PolicyService:
    """Implements `Policy`."""

    def __init__(
        self,
        *,
        in_force: PolicyInForce,
        observer: PolicyObserver,
        clock: Clock,
        random: Random,
    ) -> None:
        self._in_force = in_force
        self._observer = observer
        self._clock = clock
        self._random = random
        self._given = Memo[_Given](capacity=MAX_CACHED_ANSWERS)

    async def decide(self, question: Question, asked: Asked) -> Decision:
        """Return the answer; an engine that fails, or leaves it undefined, means denied, never an error.

        A remembered answer comes without a suspension; a denial for want of an answer is not remembered.

        Raises:
            DatabaseUnavailableError: Which policy is in force cannot be learnt; nothing was decided.
        """
        began = self._clock.monotonic()
        policy = self._in_force.known() or await self._in_force.confirmed()
        given = self._given.get((policy.digest, question, asked))
        if given is None:
            policy, given = await self._asked(policy, question, asked)
        answer = given.answer
        if not answer.allowed:
            self._observer.policy_denied(question, answer.reason, asked.subject.tenant_id)
        took = self._clock.monotonic() - began
        self._observer.policy_decided(question, took)
        return Decision(
            decision_id=new_id(DECISION, self._clock, self._random),
            tenant_id=asked.subject.tenant_id,
            question=question,
            allowed=answer.allowed,
            reason=answer.reason,
            reasons=answer.reasons,
            input=given.input,
            input_digest=given.input_digest,
            result_digest=given.result_digest,
            policy_digest=policy.digest,
            limits=answer.limits,
            decided_at=self._clock.now(),
            duration_us=int(took * 1e6),
            engine="" if policy.engine is None else policy.engine.name,
            engine_decision_id=answer.engine_decision_id,
        )

    async def _asked(self, policy: InForce, question: Question, asked: Asked) -> tuple[InForce, _Given]:
        """Ask the policy that is in force when it answers, not the one that was so when it was asked."""
        content = canonical_json(asked.document(question))
        for _ in range(MAX_TRIES):
            if policy.engine is None:
                return policy, _given(question, content, _denied(NOT_LOADED))
            answer = await ask(policy.engine, question, content.decode())
            if not answer.is_valid:
                logger.error(
                    "policy gave no valid answer",
                    question=question,
                    policy_digest=policy.digest,
                    problem=answer.problem,
                )
            now = self._in_force.known() or await self._in_force.confirmed()
            if now.digest == policy.digest:
                given = _given(question, content, answer)
                if policy.engine.is_pure and answer.is_valid:
                    self._given.keep((policy.digest, question, asked), given)
                return policy, given
            policy = now
        return policy, _given(question, content, _denied(UNDECIDED))


def _denied(reason: str) -> Answer:
    return Answer(allowed=False, reason=reason, reasons=(reason,), problem=reason)


def _given(question: Question, content: bytes, answer: Answer) -> _Given:
    return _Given(
        answer=answer,
        input=content,
        input_digest=sha256_digest(content),
        result_digest=answer.result_digest(question),
    )
