"""A log without witnesses. Implements `Witnesses`."""

from control_plane.database.ports import Transaction


class Unwitnessed:
    """Nobody cosigns, and nobody is asked before a head is signed."""

    async def may_sign(self, tx: Transaction) -> bool:  # noqa: ARG002 - part of the protocol
        """See `Witnesses.may_sign`."""
        return True

    async def stopped_by(self, tx: Transaction) -> str:  # noqa: ARG002
        """See `Witnesses.stopped_by`."""
        return ""

    async def newest(self, tx: Transaction) -> tuple[int, bytes] | None:  # noqa: ARG002
        """See `Witnesses.newest`."""
        return None
