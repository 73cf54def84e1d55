"""Pages of lists: their size and the opaque tokens between them. Knows no list."""

import base64
import binascii
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from shared.errors import InvalidInputError

T = TypeVar("T")

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 500

BAD_TOKEN: Final = "page_token is not one that a list returned"  # noqa: S105 - a text for the reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """One page of a list."""

    items: tuple[T, ...]
    next_page_token: str
    """Empty when this is the last one."""


def encode_token(last: str) -> str:
    """Return the token of the page behind the item with this id or name."""
    return base64.urlsafe_b64encode(last.encode()).decode().rstrip("=")


def decode_token(token: str) -> str:
    """Return what `encode_token` was given; whether it names anything is the caller's to check.

    Raises:
        InvalidInputError: The token is not one of ours.
    """
    try:
        return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidInputError(BAD_TOKEN) from error
