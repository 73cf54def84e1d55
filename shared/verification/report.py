"""What a verification came to: its numbered checks, each with its result in words. No I/O."""

from dataclasses import dataclass
from enum import StrEnum

from shared.decisions import DecisionResult
from shared.keyset import Keyset
from shared.manifest import Manifest
from shared.orders import Order
from shared.receipt_file import ReceiptFile
from shared.receipts import ReceiptPredicate


class CheckResult(StrEnum):
    """How one check ended."""

    HELD = "held"
    FAILED = "failed"
    NOT_REACHED = "not_reached"
    """An earlier one failed: nothing behind it may be believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of docs/specs/receipt.md."""

    number: int
    name: str
    """What programs compare, e.g. ``inclusion``."""
    result: CheckResult
    words: str
    """What held, or what is wrong."""
    reason: str = ""
    """Of a failed one, e.g. ``SIGNATURE_INVALID``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """What is known once every check has held."""

    file: ReceiptFile
    keyset: Keyset
    order: Order
    templates: tuple[Manifest, ...]
    decision: DecisionResult
    receipt: ReceiptPredicate
    witnesses: tuple[str, ...]
    """Whose cosignatures hold, of those that are trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The checks in their order."""

    checks: tuple[Check, ...]
    proved: Proved | None
    """None: a check failed."""

    @property
    def failed(self) -> Check | None:
        """The check that failed."""
        return next((check for check in self.checks if check.result is CheckResult.FAILED), None)
