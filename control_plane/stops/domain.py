"""Emergency stops as values. No I/O."""

from dataclasses import dataclass, field
from datetime import datetime

from shared.errors import InvalidInputError
from shared.ids import StopId, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTarget:
    """What a stop holds: a whole tenant, every version of a template, or one version."""

    tenant_id: TenantId
    template_name: str = ""
    template_digest: str = ""

    def __post_init__(self) -> None:
        if self.template_name and self.template_digest:
            raise InvalidInputError(
                "a stop is for a template by name, or for one version by digest, not both"
            )

    def __str__(self) -> str:
        what = self.template_name or self.template_digest
        return f"template {what} of tenant {self.tenant_id}" if what else f"tenant {self.tenant_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """One emergency stop. It holds until it is lifted, and stays on record after that."""

    stop_id: StopId
    target: StopTarget
    reason: str
    created_by: str
    created_at: datetime
    lifted_by: str = ""
    lift_reason: str = ""
    lifted_at: datetime | None = None
    evidence: bytes = field(default=b"", repr=False)
    """Of a quarantine: canonical JSON of what was found; kept for good. Empty where it was not asked for."""
    is_quarantine: bool = False

    @property
    def holds(self) -> bool:
        """Whether it still stops anything."""
        return self.lifted_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A stop that was made or found, and how many executions nodes were told to end."""

    stop: Stop
    executions_stopped: int
