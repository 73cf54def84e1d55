"""What running an order needs from the rest of the node."""

from typing import Protocol

from data_plane.orders.domain import AttemptRef
from data_plane.receipts.domain import SpooledReceipt


class InputSource(Protocol):
    """Where inputs above 64 KiB come from."""

    async def fetch_input(self, attempt: AttemptRef, size_bytes: int) -> bytes:
        """Fetch the input of an attempt under its live lease: exactly `size_bytes`.

        Raises:
            UnavailableError: The source does not answer, or breaks off.
            MalformedError: It sends more or less than announced.
            PermissionDeniedError: The lease is not live any more.
        """


class Announcer(Protocol):
    """Tells the control plane what happens here; never blocks, never fails. What is lost is sent again."""

    def started(self, attempt: AttemptRef) -> None:
        """The guest of this attempt is about to run."""

    def receipt_ready(self, receipt: SpooledReceipt) -> None:
        """This receipt is on the disk and may leave."""
