"""A policy decision as evidence: its result in one form, and the digest by which the log names it. Pure."""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from shared.canonical import JsonObject, canonical_json
from shared.digests import Digest, digest_from_raw, sha256_digest
from shared.fields import Fields
from shared.limits import LIMIT_FIELDS, MAX_LIMITS, Limits

EXECUTE: Final = "execute"
"""The question that is asked before an execution is accepted."""

GRANTING: Final = frozenset({"publish_template", "create_agent", EXECUTE})
"""Questions whose answer names every limit."""

MAX_REASONS: Final = 64
MAX_REASON_CHARS: Final = 256

_REASON: Final = re.compile(rf"(?s:.{{0,{MAX_REASON_CHARS}}})")
_PREFIX: Final = "af-decision-v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionResult:
    """What policy said."""

    allowed: bool
    reason: str
    reasons: tuple[str, ...] = ()
    limits: Limits | None = None
    """Granted; None where the question grants none."""

    def digest(self, question: str) -> Digest:
        """Return the digest of all that was said to a question: another result has another one."""
        return sha256_digest(canonical_json(result_json(self, question)))


def result_json(result: DecisionResult, question: str) -> JsonObject:
    """Return the result as it is digested and filed."""
    said: JsonObject = {
        "allowed": result.allowed,
        "reason": result.reason,
        "reasons": list(result.reasons),
    }
    if question in GRANTING and result.limits is not None:
        said["limits"] = {name: getattr(result.limits, name) for name in LIMIT_FIELDS}
    return said


def read_result(said: Fields, question: str) -> DecisionResult:
    """Return what `result_json` was given.

    Raises:
        MalformedError: A field is missing, of another type or out of its bounds.
        UnknownFieldError: There is another one.
    """
    result = DecisionResult(
        allowed=said.boolean("allowed"),
        reason=said.pattern("reason", _REASON, f"a string of at most {MAX_REASON_CHARS} characters"),
        reasons=said.texts("reasons", max_items=MAX_REASONS, max_chars=MAX_REASON_CHARS),
        limits=_read_limits(said.child("limits")) if question in GRANTING else None,
    )
    said.end()
    return result


def decision_digest(
    *, decision_id: str, question: str, policy_digest: str, input_digest: str, result_digest: str
) -> Digest:
    """Return the one digest of a decision: sha256 of these lines, none of which holds a line break.

    `input_digest` and `result_digest` are those of the canonical JSON.
    """
    lines = (_PREFIX, decision_id, question, policy_digest, input_digest, result_digest)
    return digest_from_raw(hashlib.sha256("\n".join(lines).encode()).digest())


def _read_limits(said: Fields) -> Limits:
    values = {name: said.integer(name, maximum=getattr(MAX_LIMITS, name)) for name in LIMIT_FIELDS}
    said.end()
    try:
        return Limits(**values)
    except ValueError as error:
        raise said.invalid("limits", f"are none: {error}") from error
