"""What is removed of an execution on demand, and what says so afterwards. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from control_plane.audit.domain import Fact
from shared.ids import ExecutionId

MAX_AT_ONCE: Final = 100
"""Executions of one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """One execution without what it read and wrote, and the commitments that its receipt still holds."""

    execution_id: ExecutionId
    bodies: int
    input_commitment: str
    output_commitment: str
    receipt_id: str
    commitments: tuple[str, ...] = ()
    """Of all that was removed, logs and recordings too."""

    def facts(self, reason: str) -> Mapping[str, Fact]:
        """Return what the audit entry says."""
        named = {
            "receipt_id": self.receipt_id,
            "input_commitment": self.input_commitment,
            "output_commitment": self.output_commitment,
            "removed": " ".join(self.commitments),
        }
        return {
            "reason": reason,
            "bodies": self.bodies,
            **{name: fact for name, fact in named.items() if fact},
        }
