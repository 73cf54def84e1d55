"""What the command line prints: tables and lines for people, proto3 JSON for programs, one form of error.

Results go to stdout, everything else to stderr, so that a pipe carries results only.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from datetime import UTC
from typing import TYPE_CHECKING, Annotated

import typer

from shared import errors

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

OK, NOT_SUCCEEDED, WRONG_USE, REFUSED, UNAVAILABLE = range(5)

# Class of error to exit code; the first that fits counts, anything else is a wrong use.
EXIT_CODES: tuple[tuple[type[errors.AgentFactoryError], int], ...] = (
    (errors.VerificationError, REFUSED),
    (errors.UnauthenticatedError, REFUSED),
    (errors.PermissionDeniedError, REFUSED),
    (errors.PolicyDeniedError, REFUSED),
    (errors.PolicyInvalidError, REFUSED),
    (errors.EnrollmentTokenInvalidError, REFUSED),
    (errors.NodeQuarantinedError, REFUSED),
    (errors.NodeEvictedError, REFUSED),
    (errors.EngineDeniedError, REFUSED),
    (errors.TemplateRetiredError, REFUSED),
    (errors.TemplateRevokedError, REFUSED),
    (errors.StoppedError, REFUSED),
    (errors.KeyFileModeError, REFUSED),
    (errors.KeyFormatError, REFUSED),
    (errors.OrderRejectedError, REFUSED),
    (errors.UnavailableError, UNAVAILABLE),
    (errors.ResourceExhaustedError, UNAVAILABLE),
    (errors.DeadlineExceededError, UNAVAILABLE),
    (errors.PortInUseError, UNAVAILABLE),
    (errors.SpoolLockedError, UNAVAILABLE),
    (errors.WorkerCrashedError, UNAVAILABLE),
    (errors.ArtifactInvalidError, UNAVAILABLE),
    (errors.InternalError, UNAVAILABLE),
)

_as_json: ContextVar[bool] = ContextVar("as_json", default=False)


def _set_json(value: bool) -> bool:
    _as_json.set(value)
    return value


Json = Annotated[
    bool, typer.Option("--json", callback=_set_json, is_eager=True, help="Print proto3 JSON of the message.")
]


def wants_json() -> bool:
    return _as_json.get()


def exit_code(error: errors.AgentFactoryError) -> int:
    """The exit code for ``error``: 2 wrong use, 3 refused, 4 unavailable."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), WRONG_USE)


def _reason(error: errors.AgentFactoryError) -> str:
    """The peer's own reason where this build does not know it (`shared.rpc.errors.RemoteError`)."""
    return str(getattr(error, "remote_reason", error.reason))


def fail(error: errors.AgentFactoryError) -> int:
    """Print ``error`` (JSON on stdout under --json, else lines on stderr); return its exit code."""
    if wants_json():
        said = {"reason": _reason(error), "message": str(error), "hint": error.hint or ""}
        wrong = [{"field": one.field, "description": one.description} for one in error.violations]
        print(json.dumps({"error": {**said, "violations": wrong} if wrong else said}))
    else:
        note(f"error: {error} [{_reason(error)}]")
        for violation in error.violations:
            note(f"       {violation.field}: {violation.description}")
        if error.hint:
            note(f"hint:  {error.hint}")
    return exit_code(error)


def note(line: str) -> None:
    """Print one line for people, beside the result."""
    print(line, file=sys.stderr, flush=True)


def message(value: "Message") -> None:
    """Print proto3 JSON of ``value``."""
    from google.protobuf.json_format import MessageToJson

    print(MessageToJson(value, indent=2, ensure_ascii=False))


def line(value: "Message") -> None:
    """Print proto3 JSON of ``value`` as one line: an item of a stream."""
    from google.protobuf.json_format import MessageToJson

    print(MessageToJson(value, indent=None, ensure_ascii=False), flush=True)


def data(value: object) -> None:
    """Print a result that is no message of the contract as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Print ``rows`` under ``columns``, tab-separated off a terminal; none: ``empty`` on stderr."""
    lines = [[str(cell) for cell in row] for row in rows]
    if not lines:
        note(empty)
        return
    if not sys.stdout.isatty():
        print("\t".join(columns))
        for line in lines:
            print("\t".join(line))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for line in lines:
        grid.add_row(*line)
    Console().print(grid, markup=False)


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print named values, one a line; empty ones are left out."""
    shown = [(name, str(value)) for name, value in pairs if value not in ("", None, b"", [])]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}}  {value}")


def enum(name: str) -> str:
    """Return the word a person reads for a proto enum value: EXECUTION_STATE_SUCCEEDED is succeeded."""
    return name.rsplit("STATE_", 1)[-1].rsplit("OUTCOME_", 1)[-1].lower()


def time(value: "Timestamp") -> str:
    """Return a timestamp to the second, UTC; empty when it is not set."""
    return value.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%SZ") if value.seconds else ""


def milliseconds(value: "Duration") -> str:
    return f"{value.seconds * 1e3 + value.nanos / 1e6:.1f} ms"
