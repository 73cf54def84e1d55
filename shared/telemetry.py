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
_FIELDS = "(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
_TRACEPARENT = re.compile(f"00-{_FIELDS}")
_LATER_VERSION = re.compile(f"(?!00|ff)[0-9a-f]{{2}}-{_FIELDS}(?:-[!-~]*)?")
_SAMPLED_DIGITS: Final = frozenset("13579bdf")

_TRACE_ID_CHARS: Final = 32
_SPAN_ID_CHARS: Final = 16
_DRAWN_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceParent:
    """Where a piece of work belongs in a trace (W3C Trace Context, version 00)."""

    trace_id: str
    """32 hexadecimal digits, as they travel; never all zero."""
    span_id: str
    """16 of them."""
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


class NewIds:
    """Gives the ids of new traces and spans. Draws for hundreds at once: each alone costs a system call."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._digits = ""
        self._at = 0

    def trace_id(self) -> str:
        """Return the id of a new trace; never the invalid one of all zeroes."""
        return self._take(_TRACE_ID_CHARS)

    def span_id(self) -> str:
        """Return the id of a new span; never the invalid one of all zeroes."""
        return self._take(_SPAN_ID_CHARS)

    def _take(self, chars: int) -> str:
        start, end = self._at, self._at + chars
        if end > len(self._digits):
            self._digits = self._random.token_bytes(_DRAWN_BYTES).hex()
            start, end = 0, chars
        self._at = end
        taken = self._digits[start:end]
        return taken if taken.strip("0") else "1".zfill(chars)


def parse_traceparent(text: str) -> TraceParent:
    """Return what a `traceparent` of version 00 says.

    Raises:
        InvalidInputError: It is not version 00 of W3C Trace Context, or an id is all zero.
    """
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        raise InvalidInputError(f"{text[:64]!r} is not a traceparent of version 00")
    return _parent(match)


def read_traceparent(text: str) -> TraceParent | None:
    """Return what a header from outside says, or None when it says nothing: it is never an error.

    A later version counts by its first four fields, as W3C Trace Context section 3.2.4 has it.
    """
    if not _VERSION_00_CHARS <= len(text) <= MAX_HEADER_CHARS:
        return None
    match = _TRACEPARENT.fullmatch(text) or _LATER_VERSION.fullmatch(text)
    return None if match is None else _parent(match)


def _parent(match: re.Match[str]) -> TraceParent:
    trace_id, span_id, flags = match.groups()
    return TraceParent(trace_id=trace_id, span_id=span_id, sampled=flags[1] in _SAMPLED_DIGITS)


def sampled_trace_id(traceparent: str) -> str:
    """Return the id of a trace that is kept, for an exemplar; empty if it is not, or there is none."""
    if not traceparent.endswith("-01"):
        return ""
    found = read_traceparent(traceparent)
    return "" if found is None else found.trace_id
