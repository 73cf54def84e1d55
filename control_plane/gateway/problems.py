"""What a caller is told when a request fails: application/problem+json (RFC 9457), from typed errors.

The status comes from the tables of shared/rpc/status.py; only what HTTP itself refuses has its status here.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import Response

from shared.errors import AgentFactoryError, InternalError
from shared.rpc.errors import RemoteError, reason_of, typed_error
from shared.rpc.status import HTTP_BY_STATUS, status_of

CONTENT_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "https://agentfactory.dev/problems/"
MAX_VIOLATIONS: Final = 16
"""Fields that one answer names."""

CLIENT_CLOSED: Final = 499
_TITLES: Final[Mapping[int, str]] = {CLIENT_CLOSED: "Client Closed Request"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One part of a request that is not as the API says. Never holds the value."""

    location: str
    """``path``, ``query``, ``header`` or ``body``."""
    pointer: str
    """Name of the parameter, or JSON pointer into the body."""
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One failure as HTTP says it."""

    status: int
    reason: str
    detail: str
    hint: str | None = None
    retry_after: timedelta | None = None
    violations: Sequence[Violation] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the members of the document."""
        document: dict[str, Any] = {
            "type": TYPE_PREFIX + self.reason.lower().replace("_", "-"),
            "title": title_of(self.status),
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
        }
        if self.hint:
            document["hint"] = self.hint
        if self.retry_after is not None:
            document["retryAfterSeconds"] = self.retry_after.total_seconds()
        if self.violations:
            document["violations"] = [
                {"in": one.location, "pointer": one.pointer, "detail": one.detail}
                for one in self.violations[:MAX_VIOLATIONS]
            ]
        return document

    def to_bytes(self) -> bytes:
        """Return the document."""
        return json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":")).encode()

    def response(self) -> Response:
        """Return the answer."""
        headers = dict(self.headers)
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = 'Bearer realm="agentfactory"'  # RFC 6750, section 3
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after.total_seconds())))
        return Response(self.to_bytes(), self.status, headers, media_type=CONTENT_TYPE)


class ProblemError(Exception):
    """Ends a request with a problem that no typed error stands for: HTTP's own, or one with violations."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def problem_of(error: BaseException) -> Problem:
    """Return what a failure is to a caller; what is not ours is an internal error, without a word more."""
    if isinstance(error, ProblemError):
        return error.problem
    typed = typed_error(error) or InternalError("internal error")
    return Problem(
        status=_http_status(typed),
        reason=reason_of(typed),
        detail=str(typed),
        hint=typed.hint,
        retry_after=typed.retry_after,
    )


def with_violations(error: AgentFactoryError, violations: Sequence[Violation]) -> ProblemError:
    """Return a typed error as a problem that names the parts of the request which it is about."""
    return ProblemError(replace(problem_of(error), violations=tuple(violations)))


def title_of(status: int) -> str:
    """Return HTTP's phrase for a status."""
    return _TITLES.get(status) or HTTPStatus(status).phrase


def _http_status(error: AgentFactoryError) -> int:
    code = error.code if isinstance(error, RemoteError) else status_of(error)
    return HTTP_BY_STATUS[code]


def invalid(violations: Sequence[Violation]) -> ProblemError:
    """Return the refusal of a request that is not as the API says."""
    first = violations[0]
    return ProblemError(
        Problem(
            status=HTTPStatus.BAD_REQUEST,
            reason="INVALID_INPUT",
            detail=f"{first.location} {first.pointer}: {first.detail}",
            hint="correct what `violations` names; /openapi.json says what is expected",
            violations=violations,
        )
    )


def refused(status: HTTPStatus, reason: str, detail: str, *, hint: str, **headers: str) -> ProblemError:
    """Return a refusal by HTTP itself."""
    return ProblemError(Problem(status=status, reason=reason, detail=detail, hint=hint, headers=headers))
