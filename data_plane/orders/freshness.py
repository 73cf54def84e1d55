"""Whether this node's keyset is known to be the newest one (rule 12). Keeps the newest statement, in memory.

While the keyset lists no freshness key, nothing is asked for: such installations have none. Once it does, a
node that is kept from the outside world, or whose control plane keeps a revocation back, stops taking orders.
"""

from datetime import datetime, timedelta

from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.verifier import Check
from shared.clock import Clock
from shared.errors import OrderRejectedError, RejectionReason, RollbackError
from shared.freshness import FreshnessStatement, verify_statement
from shared.ids import InstallationId
from shared.keyset import KeyPurpose


class Freshness:
    """The newest statement that counts, and how old it is."""

    def __init__(
        self,
        *,
        keyset: NodeKeyset,
        installation: InstallationId,
        max_staleness: timedelta,
        max_skew: timedelta,
        clock: Clock,
    ) -> None:
        self._keyset = keyset
        self._installation = installation
        self._max_staleness = max_staleness
        self._max_skew = max_skew
        self._clock = clock
        self._newest: FreshnessStatement | None = None
        self._taken_at = 0.0

    def take(self, envelope: bytes) -> bool:
        """Take a statement up if it is newer than the one that is known. Returns whether it was.

        1. A freshness key of the keyset in force signed it, for this installation (`verify_statement`).
        2. It is not older than the newest one seen: an older one changes nothing, it may have been under way.
        3. It is at most the allowed skew from the future: else it would count for longer than it may.

        Raises:
            VerificationError: Check 1; or RollbackError, check 3.
        """
        now = self._clock.now()
        keys = self._keyset.keys_for(KeyPurpose.FRESHNESS, now)
        statement = verify_statement(envelope, keys=keys, installation=self._installation)
        if self._newest is not None and statement.issued_at <= self._newest.issued_at:
            return False
        if statement.issued_at - now > self._max_skew:
            raise RollbackError(f"check 3: a statement was made at {statement.issued_at}, it is {now}")
        self._newest, self._taken_at = statement, self._clock.monotonic()
        return True

    def problem(self) -> str:
        """Return why no order may be taken now; empty when one may."""
        now = self._clock.now()
        if not self._is_asked_for(now):
            return ""
        newest = self._newest
        if newest is None:
            return "no statement says that this keyset is the newest"
        if newest.keyset_version > self._keyset.version:
            return f"keyset {newest.keyset_version} exists, this node has {self._keyset.version}"
        # By both clocks: the wall clock may be set back, the other does not know when it was made.
        waited = timedelta(seconds=self._clock.monotonic() - self._taken_at)
        age = max(now - newest.issued_at, waited)
        if age > self._max_staleness:
            return f"the newest statement is {age.total_seconds():.0f} s old"
        return ""

    def require(self) -> None:
        """Check 18.

        Raises:
            OrderRejectedError: No order may be taken now; another node may be better off.
        """
        if problem := self.problem():
            raise OrderRejectedError(problem, check=Check.FRESHNESS, rejection=RejectionReason.STALE)

    def age_seconds(self) -> float:
        """Return the age of the newest statement; -1 when there is none."""
        if self._newest is None:
            return -1.0
        return (self._clock.now() - self._newest.issued_at).total_seconds()

    def _is_asked_for(self, now: datetime) -> bool:
        # Not only the valid ones: a freshness key that has ended must not switch the check off. And not at
        # once: the first statement is made after the keyset that lists its key.
        return self._keyset.lists(KeyPurpose.FRESHNESS, now - self._max_staleness)
