"""Rule 5: whether this node's receipts and what the control plane accepted are one chain. Pure."""

from data_plane.receipts.domain import SpoolHead
from data_plane.receipts.ports import ReceiptSpool
from shared.errors import NodeEvictedError, NodeQuarantinedError


def check_chain(spool: ReceiptSpool, accepted: SpoolHead) -> None:
    """Return if the newest accepted receipt is one of this node's chain.

    1. The node is not behind: a receipt that was accepted is in its spool or before its head.
    2. Where the node still knows that receipt, it is the same one.

    Raises:
        NodeEvictedError: Check 1. The spool was lost or replaced by an older one, which ends the identity.
        NodeQuarantinedError: Check 2. There are two receipts of one number.
    """
    head = spool.head
    if accepted.sequence > head.sequence:
        raise NodeEvictedError(
            f"check 1: receipt {accepted.sequence} was accepted, the spool here ends at {head.sequence}",
            hint="the receipt spool was lost or is an older copy: enroll this node anew",
        )
    known = spool.hash_of(accepted.sequence) if accepted.sequence else None
    if known is not None and known != accepted.hash:
        raise NodeQuarantinedError(f"check 2: the accepted receipt {accepted.sequence} is not this node's")
