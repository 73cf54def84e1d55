"""The receipt that a replay starts from: verified as `agentfactory verify` does it, or refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.receipt_source import trust_of
from cli.settings import CliSettings
from shared.errors import VerificationError
from shared.verification.checks import verify_receipt_file
from shared.verification.report import Proved

if TYPE_CHECKING:
    from shared.keyset import Keyset
    from shared.manifest import Manifest
    from shared.orders import Order
    from shared.receipt_file import FiledDecision
    from shared.receipts import ReceiptPredicate


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One execution as it is proved."""

    proved: Proved
    checks_held: int

    @property
    def order(self) -> "Order":
        """What was ordered."""
        return self.proved.order

    @property
    def receipt(self) -> "ReceiptPredicate":
        """What the node said."""
        return self.proved.receipt

    @property
    def keyset(self) -> "Keyset":
        """Which keys counted."""
        return self.proved.keyset

    @property
    def manifest(self) -> "Manifest":
        """The template that was ordered."""
        return self.proved.templates[0]

    @property
    def decision(self) -> "FiledDecision":
        """What policy was asked and said."""
        return self.proved.file.decision


def verified(settings: CliSettings, data: bytes, trust: Path | None) -> Evidence:
    """Return what a receipt file proves.

    Raises:
        VerificationError: A check failed; the message names it.
        NotFoundError: Nobody is trusted here.
    """
    verification = verify_receipt_file(data, trust_of(settings, trust))
    failed, proved = verification.failed, verification.proved
    if failed is not None or proved is None:
        what = "" if failed is None else f"check {failed.number} ({failed.name}) failed: {failed.words}"
        raise VerificationError(f"the receipt is not proved: {what}")
    return Evidence(proved=proved, checks_held=len(verification.checks))
