"""Strict reading of decoded JSON and TOML into typed values. Knows types and bounds; knows no format.

Every field is asked for by name and type; `end` then refuses whatever nobody asked for. An absent optional
field is absent: null is not another way to say so, so that one meaning has one encoding.
"""

import re
from datetime import UTC, datetime
from typing import Any, Final

from shared.canonical import MAX_SAFE_INTEGER, JsonObject
from shared.digests import Digest, parse_digest
from shared.errors import InvalidInputError, MalformedError, UnknownFieldError, VerificationError

MAX_TEXT_CHARS: Final = 4096
MAX_ITEMS: Final = 1024

_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z", re.ASCII)


def time_to_text(at: datetime) -> str:
    """Return an aware time in the one form that signed JSON uses: UTC, microseconds, ``Z`` (RFC 3339)."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


class Fields:
    """One object whose fields are taken one by one. Lives only while a format is being decoded."""

    def __init__(
        self, document: JsonObject, what: str, *, error: type[VerificationError] = MalformedError
    ) -> None:
        self._document = dict(document)
        self._what = what
        self._error = error

    def text(self, name: str, *, max_chars: int = MAX_TEXT_CHARS) -> str:
        """Take a string that is not empty.

        Raises:
            VerificationError: As the class given, as by every method here: it is absent, empty, too long or
                no string.
        """
        value = self._take(name)
        if not isinstance(value, str) or not 1 <= len(value) <= max_chars:
            raise self._wrong(name, f"a string of 1 to {max_chars} characters")
        return value

    def pattern(self, name: str, pattern: re.Pattern[str], like: str) -> str:
        """Take a string that matches `pattern` wholly; `like` describes it to the reader of the error."""
        value = self._take(name)
        if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS or not pattern.fullmatch(value):
            raise self._wrong(name, like)
        return value

    def integer(self, name: str, *, minimum: int = 0, maximum: int = MAX_SAFE_INTEGER) -> int:
        """Take an integer within its bounds."""
        value = self._take(name)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self._wrong(name, f"an integer from {minimum} to {maximum}")
        return value

    def digest(self, name: str) -> Digest:
        """Take a digest in its text form."""
        try:
            return parse_digest(self.text(name))
        except InvalidInputError as error:
            raise self._wrong(name, "a digest, sha256:<64 hex digits>") from error

    def time(self, name: str) -> datetime:
        """Take a time in the form of `time_to_text`."""
        value = self.pattern(name, _TIME, "a time such as 2026-01-31T12:00:00.000000Z")
        try:
            return datetime.fromisoformat(value.removesuffix("Z")).replace(tzinfo=UTC)
        except ValueError as error:
            raise self._wrong(name, "a time that exists") from error

    def raw_object(self, name: str) -> JsonObject:
        """Take an object whose fields are not ours to know (a JSON Schema)."""
        value = self._take(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value

    def child(self, name: str) -> "Fields":
        """Take an object; its own `end` is the caller's to call."""
        return Fields(self.raw_object(name), f"{self._what}.{name}", error=self._error)

    def children(self, name: str, *, max_items: int = MAX_ITEMS) -> list["Fields"]:
        """Take a list of objects."""
        value = self._take(name)
        if not isinstance(value, list) or len(value) > max_items:
            raise self._wrong(name, f"a list of at most {max_items} objects")
        if not all(isinstance(item, dict) for item in value):
            raise self._wrong(name, "a list of objects only")
        return [
            Fields(item, f"{self._what}.{name}[{at}]", error=self._error) for at, item in enumerate(value)
        ]

    def boolean(self, name: str) -> bool:
        """Take true or false."""
        value = self._take(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def texts(
        self, name: str, *, max_items: int = MAX_ITEMS, max_chars: int = MAX_TEXT_CHARS
    ) -> tuple[str, ...]:
        """Take a list of strings that are not empty."""
        value = self._take(name)
        if not isinstance(value, list) or len(value) > max_items:
            raise self._wrong(name, f"a list of at most {max_items} strings")
        if not all(isinstance(item, str) and 1 <= len(item) <= max_chars for item in value):
            raise self._wrong(name, f"a list of strings of 1 to {max_chars} characters only")
        return tuple(value)

    def has(self, name: str) -> bool:
        """Whether the field is there and not yet taken."""
        return name in self._document

    def invalid(self, name: str, problem: str) -> VerificationError:
        """Return the error to raise for a field whose value breaks a rule of the format."""
        return self._error(f"{self._what} field {name!r} {problem}")

    def end(self) -> None:
        """Refuse what was not taken.

        Raises:
            UnknownFieldError: A field is left.
        """
        if self._document:
            raise UnknownFieldError(f"{self._what} carries the unknown field {min(self._document)[:64]!r}")

    def _take(self, name: str) -> Any:
        if name not in self._document:
            raise self._error(f"{self._what} lacks the field {name!r}")
        return self._document.pop(name)

    def _wrong(self, name: str, expected: str) -> VerificationError:
        return self.invalid(name, f"is not {expected}")
