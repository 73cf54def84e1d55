"""One question to one engine, and what counts as an answer. Records and remembers nothing.

Whatever an engine says that is not exactly an answer is a denial.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from control_plane.policy.domain import GRANTING, PACKAGE, Question
from control_plane.policy.ports import PolicyEngine
from shared.decisions import MAX_REASON_CHARS, MAX_REASONS, DecisionResult
from shared.digests import Digest
from shared.errors import AgentFactoryError
from shared.limits import DEFAULT_LIMITS, LIMIT_FIELDS, Limits

UNDECIDED: Final = "POLICY_UNDECIDED"
"""Reason of a denial because the policy gave no valid answer."""

NOT_LOADED: Final = "POLICY_NOT_LOADED"
"""Reason of a denial because this replica cannot load the policy that is in force."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a policy says to one question."""

    allowed: bool
    reason: str
    reasons: tuple[str, ...] = ()
    limits: Limits = DEFAULT_LIMITS
    """Granted; what holds without an answer is meaningless, as in every denial."""
    engine_decision_id: str = ""
    problem: str = ""
    """Why there was no valid answer."""

    @property
    def is_valid(self) -> bool:
        """Whether the policy said it, rather than nothing."""
        return not self.problem

    def result_digest(self, question: Question) -> Digest:
        """Return the digest of all that was answered: another answer has another one."""
        said = DecisionResult(
            allowed=self.allowed, reason=self.reason, reasons=self.reasons, limits=self.limits
        )
        return said.digest(question)


async def ask(engine: PolicyEngine, question: Question, input_json: str) -> Answer:
    """Return the engine's answer; an error, none, or one of another shape is a denial that says so."""
    try:
        evaluation = await engine.evaluate(f"data.{PACKAGE}.{question}", input_json)
        return answer_of(question, json.loads(evaluation.value_json), evaluation.engine_decision_id)
    except Exception as error:  # noqa: BLE001 - fail closed, whatever an engine raises
        # Text of our own errors only: another one's may hold anything.
        problem = str(error) if isinstance(error, AgentFactoryError | TypeError) else type(error).__name__
        return Answer(allowed=False, reason=UNDECIDED, reasons=(UNDECIDED,), problem=problem or UNDECIDED)


def answer_of(question: Question, value: Any, engine_decision_id: str = "") -> Answer:
    """Return a rule's value as an answer.

    ``{"allowed": bool, "reason": text}``, with ``"limits": {every limit: whole number}`` where limits are
    granted, and ``"reasons": [text]`` if there are several.

    Raises:
        TypeError: It is anything else.
    """
    if not isinstance(value, dict):
        raise TypeError("the answer is not an object")
    allowed: Any = value.get("allowed")
    reason: Any = value.get("reason")
    reasons: Any = value.get("reasons", [])
    if not isinstance(allowed, bool) or not _is_reason(reason):
        raise TypeError("the answer is not {allowed: bool, reason: string}")
    if not isinstance(reasons, list) or len(reasons) > MAX_REASONS or not all(map(_is_reason, reasons)):
        raise TypeError("the answer's reasons are not a list of strings")
    return Answer(
        allowed=allowed,
        reason=reason,
        reasons=() if allowed else (tuple(reasons) or (reason,)),
        limits=_limits_of(value.get("limits")) if question in GRANTING else DEFAULT_LIMITS,
        engine_decision_id=engine_decision_id,
    )


def _is_reason(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_REASON_CHARS


def _limits_of(limits: Any) -> Limits:
    if not isinstance(limits, dict) or set(limits) != set(LIMIT_FIELDS):
        raise TypeError("the answer's limits are not {every limit: whole number}")
    if any(not isinstance(limit, int) or isinstance(limit, bool) or limit < 0 for limit in limits.values()):
        raise TypeError("a granted limit is not a whole number")
    return Limits(**limits)
