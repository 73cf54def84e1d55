"""What one session has seen of its node's receipt chain. Pure; Postgres holds the whole of it."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from shared.errors import ReceiptConflictError

MAX_REMEMBERED_RECEIPTS: Final = 4096
"""Receipts of one session whose hashes are remembered; older ones are compared by the database alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Link:
    hash: bytes
    previous: bytes | None
    """None when it is not known here."""


@dataclass(slots=True)
class ReceiptChain:
    """Hashes by sequence. Receipts may come in any order and more than once."""

    _links: OrderedDict[int, _Link] = field(default_factory=OrderedDict)

    def start(self, *, sequence: int, hash_: bytes) -> None:
        """Begin behind the newest accepted receipt; nothing to do before the first."""
        if sequence:
            self._links[sequence] = _Link(hash=hash_, previous=None)

    def add(self, *, sequence: int, hash_: bytes, previous: bytes) -> None:
        """Note a receipt.

        1. The same sequence never has another hash.
        2. It names the hash of the receipt before it.
        3. The receipt after it names its hash.

        Raises:
            ReceiptConflictError: One of them does not hold among the receipts that are known here.
        """
        known = self._links.get(sequence)
        if known is not None and known.hash != hash_:
            raise ReceiptConflictError(f"check 1: there are two receipts {sequence}")
        before = self._links.get(sequence - 1)
        if before is not None and before.hash != previous:
            raise ReceiptConflictError(f"check 2: receipt {sequence} does not continue {sequence - 1}")
        after = self._links.get(sequence + 1)
        if after is not None and after.previous not in {None, hash_}:
            raise ReceiptConflictError(f"check 3: receipt {sequence + 1} does not continue {sequence}")
        self._links[sequence] = _Link(hash=hash_, previous=previous)
        while len(self._links) > MAX_REMEMBERED_RECEIPTS:
            self._links.popitem(last=False)
