"""What judging orders needs from the outside."""

from typing import Protocol

from data_plane.orders.domain import AttemptRef
from data_plane.orders.log_view import LogOffer


class LogSource(Protocol):
    """Where the transparency log is read."""

    async def read_log(self, known_size: int, attempt: AttemptRef | None) -> LogOffer:
        """Return the newest checkpoint, that it continues `known_size` leaves, and places of two facts.

        These are the template and the policy of the attempt, in this order; none without an attempt.

        Raises:
            AgentFactoryError: There is nothing to be had.
        """
