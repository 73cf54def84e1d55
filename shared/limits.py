"""What a run may use: requested by manifests, bounded by policies, granted by orders, enforced by workers."""

from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Final

MIB: Final = 1024 * 1024
_MILLISECOND: Final = timedelta(milliseconds=1)
_POSITIVE: Final = ("wall_ms", "cpu_ms", "fuel", "memory_bytes")
"""Without these nothing runs at all."""
NEEDED_LIMITS: Final = (*_POSITIVE, "output_bytes", "log_bytes", "open_files")
"""What an order always grants some of; of everything else it may grant none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may use. Every field is enforced; passing one ends the run as killed by that name."""

    wall_ms: int = 10_000
    cpu_ms: int = 10_000
    """CPU time of the guest's thread."""
    fuel: int = 20_000_000_000
    """Instructions, as the engine weighs them; counted under the profiles deterministic and portable only."""
    memory_bytes: int = 64 * MIB
    """Sum over the guest's linear memories."""
    table_elements: int = 1_000_000
    """Sum over the guest's tables, at their declared maxima; 16 bytes of host memory each."""
    output_bytes: int = MIB
    log_bytes: int = 256 * 1024
    log_lines: int = 65_536
    open_files: int = 32
    scratch_bytes: int = 0
    """By how much files may grow in total, holes included; removing a file gives nothing back.

    0: there is no scratch folder.
    """
    scratch_inodes: int = 0
    """Names that may be made in directories in total: files, directories and links."""
    random_bytes: int = 64 * MIB
    host_calls: int = 1_000
    """Calls of `agentfactory.call`, repeats for a larger buffer not counted."""
    host_call_bytes: int = 16 * MIB
    """Requests and responses of all host calls together, bodies of HTTP included."""
    host_call_ms: int = 10_000
    """Time that the guest waits in host calls, together."""

    def __post_init__(self) -> None:
        for name in LIMIT_FIELDS:
            if getattr(self, name) < (1 if name in _POSITIVE else 0):
                raise ValueError(f"limit {name} cannot be {getattr(self, name)}")

    @property
    def wall(self) -> timedelta:
        return self.wall_ms * _MILLISECOND

    @property
    def cpu(self) -> timedelta:
        return self.cpu_ms * _MILLISECOND

    @property
    def has_scratch(self) -> bool:
        """Whether the guest gets a scratch folder."""
        return self.scratch_bytes > 0 and self.scratch_inodes > 0

    def limited_by(self, other: "Limits | RequestedLimits") -> "Limits":
        """Return the smaller of both, limit by limit; a limit that is not requested stays."""
        named = {name: getattr(other, name) for name in LIMIT_FIELDS}
        return Limits(
            **{
                name: getattr(self, name) if value is None else min(getattr(self, name), value)
                for name, value in named.items()
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedLimits:
    """What a manifest or a policy asks for; None means not named."""

    wall_ms: int | None = None
    cpu_ms: int | None = None
    fuel: int | None = None
    memory_bytes: int | None = None
    table_elements: int | None = None
    output_bytes: int | None = None
    log_bytes: int | None = None
    log_lines: int | None = None
    open_files: int | None = None
    scratch_bytes: int | None = None
    scratch_inodes: int | None = None
    random_bytes: int | None = None
    host_calls: int | None = None
    host_call_bytes: int | None = None
    host_call_ms: int | None = None


LIMIT_FIELDS: Final = tuple(limit.name for limit in fields(Limits))
FIRST_LIMITS: Final = frozenset(
    {"wall_ms", "cpu_ms", "memory_bytes", "output_bytes", "log_bytes", "open_files"}
)
"""What version 1 of manifests and orders can name."""

MAX_LIMITS: Final = Limits(
    wall_ms=3_600_000,
    cpu_ms=3_600_000,
    fuel=10**15,
    memory_bytes=4096 * MIB,
    table_elements=10_000_000,
    output_bytes=16 * MIB,
    log_bytes=MIB,
    log_lines=MIB,
    open_files=1024,
    scratch_bytes=4096 * MIB,
    scratch_inodes=1_000_000,
    random_bytes=1024 * MIB,
    host_calls=100_000,
    host_call_bytes=1024 * MIB,
    host_call_ms=3_600_000,
)
"""What a manifest may ask for at most."""

NO_REQUEST: Final = RequestedLimits()

DEFAULT_LIMITS: Final = Limits()
"""What applies to limits that nobody names."""


def requested_json(limits: RequestedLimits) -> dict[str, int]:
    """Return the limits that are named."""
    return {name: value for name in LIMIT_FIELDS if (value := getattr(limits, name)) is not None}


def grant_limits(requested: RequestedLimits, ceiling: Limits = MAX_LIMITS) -> Limits:
    """Return what is granted: the requested limit, or the default where none is, never above the ceiling."""
    wanted = {
        name: getattr(DEFAULT_LIMITS, name) if value is None else value
        for name, value in ((name, getattr(requested, name)) for name in LIMIT_FIELDS)
    }
    return ceiling.limited_by(RequestedLimits(**wanted))
