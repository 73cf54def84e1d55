"""Which keyset begins another installation epoch after a restore (design rule 16). Pure."""

from dataclasses import replace
from datetime import datetime

from shared.errors import InvalidInputError, RollbackError
from shared.keyset import Keyset
from shared.keyset_changes import undone


def next_epoch(newest: Keyset, *, epoch: int, now: datetime) -> Keyset:
    """Return the keyset that begins the epoch after `newest`'s and the database's, whichever is later.

    It lists the same keys: what was revoked stays so.
    """
    return replace(newest, version=newest.version + 1, epoch=max(newest.epoch, epoch) + 1, issued_at=now)


def require_next_epoch(newest: Keyset, offered: Keyset, *, epoch: int) -> None:
    """Return if a keyset that was signed elsewhere begins another epoch after these.

    Raises:
        RollbackError: Its version is not the next, or its epoch no later one.
        InvalidInputError: It takes a revocation back.
    """
    if offered.version != newest.version + 1 or offered.epoch <= max(newest.epoch, epoch):
        raise RollbackError(
            f"keyset {offered.version} of epoch {offered.epoch} does not begin an epoch after keyset"
            f" {newest.version} of epoch {newest.epoch}, in a database of epoch {epoch}",
            hint="sign the one that the restore has written",
        )
    if problem := undone(newest, offered):
        raise InvalidInputError(f"{problem}; a revocation is not taken back")
