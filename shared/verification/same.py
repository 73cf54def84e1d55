"""Comparing what two parts of a receipt file say."""

from shared.canonical import canonical_json
from shared.errors import EvidenceMismatchError

MAX_SHOWN_CHARS = 200


def require_same(what: str, found: object, expected: object) -> None:
    """Return if both are equal.

    Raises:
        EvidenceMismatchError: They are not.
    """
    if found != expected:
        raise EvidenceMismatchError(
            f"{what} is {str(found)[:MAX_SHOWN_CHARS]!r}, expected {str(expected)[:MAX_SHOWN_CHARS]!r}"
        )


def as_json(value: object) -> str:
    """Return a JSON value in the one form in which 1, 1.0 and true differ."""
    return canonical_json(value).decode()


def short(digest: str) -> str:
    """Return a digest as people compare it: its first 12 hex digits."""
    return digest[:19]
