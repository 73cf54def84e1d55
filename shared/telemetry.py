"""W3C Trace Context: where a piece of work belongs in a trace. Pure; `tracing.py` makes spans of it.

Neither `tracestate` nor `baggage` is read or passed on: what a caller says of itself there is nobody's
business further down, least of all a guest's.
"""

import re
from dataclasses import dataclass
from typing import Final

from shared.clock import Random
from shared.errors import InvalidInputError

HEADER: Final = "traceparent"
"""Of HTTP, and the key in the metadata of gRPC."""

MAX_HEADER_CHARS: Final = 256
"""Longer ones are ignored unread: version 00 has 55, and a later one begins with these."""

_VERSION_00_CHARS: Final = 55
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_LATER_VERSION = re.compile(r"(?!00|ff)[0-9a-f]{2}-([0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})(-[!-~]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceParent:
    """Where a piece of work belongs in a trace (W3C Trace Context, version 00)."""

    trace_id: int
    span_id: int
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{'01' if self.sampled else '00'}"


def new_trace_id(random: Random) -> int:
    """Return the id of a new trace; never the invalid one of all zeroes."""
    return int.from_bytes(random.token_bytes(16), "big") | 1


def new_span_id(random: Random) -> int:
    """Return the id of a new span; never the invalid one of all zeroes."""
    return int.from_bytes(random.token_bytes(8), "big") | 1


def parse_traceparent(text: str) -> TraceParent:
    """Return what a `traceparent` of version 00 says.

    Raises:
        InvalidInputError: It is not version 00 of W3C Trace Context, or an id is all zero.
    """
    match = _TRACEPARENT.fullmatch(text)
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        raise InvalidInputError(f"{text[:64]!r} is not a traceparent of version 00")
    return TraceParent(
        trace_id=int(match[1], 16), span_id=int(match[2], 16), sampled=bool(int(match[3], 16) & 1)
    )


def read_traceparent(text: str) -> TraceParent | None:
    """Return what a header from outside says, or None when it says nothing: it is never an error.

    A later version counts by its first four fields, as W3C Trace Context section 3.2.4 has it.
    """
    if not _VERSION_00_CHARS <= len(text) <= MAX_HEADER_CHARS:
        return None
    later = _LATER_VERSION.fullmatch(text)
    try:
        return parse_traceparent(text if later is None else f"00-{later[1]}")
    except InvalidInputError:
        return None


def sampled_trace_id(traceparent: str) -> str:
    """Return the id of a trace that is kept, for an exemplar; empty if it is not, or there is none."""
    if not traceparent.endswith("-01"):
        return ""
    found = read_traceparent(traceparent)
    return "" if found is None else f"{found.trace_id:032x}"
