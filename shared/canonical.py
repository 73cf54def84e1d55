"""Canonical JSON (RFC 8785) and the strict reading of it. Owns no format and no meaning."""

import json
import math
import re
from collections import Counter
from itertools import accumulate
from typing import Any, Final, NoReturn

import rfc8785

from shared.errors import InvalidInputError, MalformedError

JsonObject = dict[str, Any]
"""A decoded JSON object on its way into a dataclass; it goes no further inside."""

MAX_DEPTH: Final = 32
"""Nesting that is accepted; our formats need five, JSON Schemas of authors some more."""

MAX_DOCUMENT_BYTES: Final = 1024 * 1024

MAX_SAFE_INTEGER: Final = 2**53 - 1
"""Above it a JSON number loses digits in other readers (RFC 8785 appendix D): it travels as a string."""

_SAFE_INTEGER_CHARS: Final = len(str(MAX_SAFE_INTEGER))
_MAX_INTEGER_CHARS: Final = len("-") + len(str(10**21 - 1))
# A string that nobody closed reaches to the end: tried again at every quote in it, it would cost the square.
# Plain runs are taken whole: byte by byte, this would be most of what reading a document takes.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_PLAIN_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def canonical_json(value: Any) -> bytes:
    """Return the one RFC 8785 encoding of `value` (objects, lists, strings, numbers, booleans, None).

    Raises:
        InvalidInputError: It holds something that JSON cannot carry exactly: NaN, infinity, an integer beyond
            2^53 - 1, a lone surrogate, a key that is no string, another type.
    """
    try:
        plain = _plain_encoding(value) if _is_plain(value) else None
        return rfc8785.dumps(value) if plain is None else plain
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidInputError(f"value has no canonical JSON form: {error}") from error


def parse_strict(
    data: bytes, *, max_bytes: int = MAX_DOCUMENT_BYTES, max_depth: int = MAX_DEPTH
) -> JsonObject:
    """Return the JSON object in `data`.

    Raises:
        MalformedError: It is larger than `max_bytes`, nested deeper than `max_depth`, not UTF-8, not one
            JSON object; a key occurs twice in an object; it holds NaN, infinity or an inexact number.
    """
    return _parse(data, max_bytes, max_depth)[0]


def parse_canonical(
    data: bytes, *, max_bytes: int = MAX_DOCUMENT_BYTES, max_depth: int = MAX_DEPTH
) -> JsonObject:
    """Like `parse_strict`, and `data` must be the one canonical encoding of what it holds.

    Raises:
        MalformedError: As `parse_strict`, or the encoding is not RFC 8785.
    """
    value, doubles = _parse(data, max_bytes, max_depth)
    if not doubles and _plain_encoding(value) == data:
        return value
    try:
        encoded = canonical_json(value)
    except InvalidInputError as error:
        raise MalformedError(f"JSON document has no canonical form: {error}") from error
    if encoded != data:
        raise MalformedError("JSON document is not in canonical form (RFC 8785)")
    return value


def parse_value(data: bytes, *, max_bytes: int = MAX_DOCUMENT_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Like `parse_strict`, for JSON of which nobody says that it is an object.

    Raises:
        MalformedError: As `parse_strict`.
    """
    return _parse_any(data, max_bytes, max_depth)[0]


def _parse(data: bytes, max_bytes: int, max_depth: int) -> tuple[JsonObject, bool]:
    """Return the object, and whether any of its numbers was read as a double."""
    value, doubles = _parse_any(data, max_bytes, max_depth)
    if not isinstance(value, dict):
        raise MalformedError("the JSON document is not an object")
    return value, doubles


def _parse_any(data: bytes, max_bytes: int, max_depth: int) -> tuple[Any, bool]:
    if len(data) > max_bytes:
        raise MalformedError(f"JSON document has {len(data)} bytes, the bound is {max_bytes}")
    _check_depth(data, max_depth)
    doubles: list[float] = []

    def integer(text: str) -> int | float:
        return int(text) if len(text) < _SAFE_INTEGER_CHARS else number(text)

    def number(text: str) -> int | float:
        value = _exact_number(text)
        if isinstance(value, float):
            doubles.append(value)
        return value

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_int=integer,
            parse_float=number,
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise MalformedError(f"not a JSON document: {error}") from error
    return value, bool(doubles)


def _is_plain(value: Any) -> bool:
    """Whether the standard library writes `value` as RFC 8785 does, as long as its keys are ASCII."""
    if value is None or isinstance(value, (str, bool)):
        return True
    if isinstance(value, int):
        return -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER
    if isinstance(value, dict):
        # The usual member is decided here, without a call of its own.
        return all(
            isinstance(key, str) and (isinstance(item, str) or _is_plain(item)) for key, item in value.items()
        )
    return isinstance(value, list) and all(map(_is_plain, value))


def _plain_encoding(value: Any) -> bytes | None:
    """Return the standard library's encoding, None where that may be another than RFC 8785's.

    Without doubles it differs only in the order of keys beyond the basic plane, and is ten times faster.
    """
    encoded = _PLAIN_ENCODER.encode(value)
    if encoded.isascii():
        return encoded.encode("ascii")
    try:
        return encoded.encode("utf-8") if _has_ascii_keys(value) else None
    except UnicodeEncodeError:  # a lone surrogate, which has no encoding at all
        return None


def _has_ascii_keys(value: Any) -> bool:
    if isinstance(value, dict):
        return all(key.isascii() and _has_ascii_keys(item) for key, item in value.items())
    return not isinstance(value, list) or all(map(_has_ascii_keys, value))


def _check_depth(data: bytes, max_depth: int) -> None:
    # Before the parser, because the parser's own guard is the interpreter's stack.
    if data.count(b"{") + data.count(b"[") <= max_depth:
        return
    # A guest sends half a MiB of brackets as often as it may: no step of its own for each of them.
    brackets = _STRINGS.sub(b"", data).translate(None, _NO_BRACKETS)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > max_depth:
        raise MalformedError(f"JSON document is nested deeper than {max_depth}")


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise MalformedError(f"key {twice[:64]!r} occurs twice in one JSON object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedError(f"JSON document holds {name}")


def _exact_number(text: str) -> int | float:
    if not text.lstrip("-").isdigit():
        value = float(text)
        if not math.isfinite(value):
            raise MalformedError(f"JSON number {text[:32]} is beyond the range of a double")
        return value
    # The length first: int() of a long digit string is quadratic.
    if len(text) <= _MAX_INTEGER_CHARS:
        if abs(int(text)) <= MAX_SAFE_INTEGER:
            return int(text)
        # RFC 8785 writes doubles below 1e21 without exponent. They come back as the doubles they were.
        value = float(text)
        if rfc8785.dumps(value).decode("ascii") == text:
            return value
    raise MalformedError(f"JSON number {text[:32]} is beyond 2^53 - 1 and no double: write it as a string")
