"""What a run is asked to do and how it ended. No I/O, no clock, no randomness."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from shared import compiled
from shared.limits import DEFAULT_LIMITS, Limits
from shared.manifest import Profile
from shared.outcomes import LimitName, Outcome
from shared.resources import NO_RESOURCES, ResourcesUsed

MAX_INPUT_BYTES: Final = 16 * 1024 * 1024
"""Bound of one run's stdin."""

MAX_REQUEST_BYTES: Final = 512 * 1024
"""Of one host call; a worker forwards no more."""
MAX_RESPONSE_BYTES: Final = 768 * 1024
"""Of one host call; a worker takes no more."""
MAX_LOG_LINE_BYTES: Final = 128 * 1024
"""What one host call may add to the guest's log."""

MAX_ARTIFACT_BYTES: Final = compiled.MAX_ARTIFACT_BYTES
"""Bound of one compiled module."""

SEED_BYTES: Final = 32
MAX_ARGUMENTS: Final = 1024
"""Bound of one run's arguments, and of its environment entries."""
MAX_PREOPENS: Final = 16
STACK_BYTES: Final = 1024 * 1024
"""The guest's call stack, the same for every run: the engine fixes it (limits.rs)."""


class Layer(StrEnum):
    """The walls around a worker, as the worker binary names them."""

    SECCOMP = "seccomp"
    NAMESPACES = "namespaces"
    LANDLOCK = "landlock"
    RLIMITS = "rlimits"
    NO_NEW_PRIVS = "no_new_privs"
    NOT_ROOT = "not_root"
    CGROUP = "cgroup"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerState:
    """Whether a wall stands on this machine."""

    layer: Layer
    active: bool
    detail: str
    """What it holds off; of a missing one, why it is not possible here."""


class Stream(StrEnum):
    """Where output came from: the result (stdout) or the log (stderr)."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preopen:
    """A directory of the host that the guest sees under ``guest_path``, and nothing above it.

    A worker is locked to the directories of its first run, so runs that name others get workers of their own;
    a directory must not be replaced by a new one of the same name while a worker may be warm.
    """

    host_path: str
    guest_path: str
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One run of one module."""

    args: tuple[str, ...] = ("agent",)
    """``argv``, the program's name included."""
    env: tuple[tuple[str, str], ...] = ()
    stdin: bytes = field(default=b"", repr=False)
    limits: Limits = DEFAULT_LIMITS
    profile: Profile = Profile.DEFAULT
    """Under any but the default one seed and clock are needed, and the same request gives the same run."""
    seed: bytes | None = field(default=None, repr=False)
    """32 bytes from which the guest's random numbers come; None means the kernel's."""
    clock: datetime | None = None
    """Fixed start of the guest's clocks; None means real time."""
    preopens: tuple[Preopen, ...] = ()
    scratch: bool = False
    """Whether the guest gets an empty folder of its own to write to, as `/scratch`."""

    def __post_init__(self) -> None:
        if len(self.stdin) > MAX_INPUT_BYTES:
            raise ValueError(f"stdin has {len(self.stdin)} bytes, the bound is {MAX_INPUT_BYTES}")
        if max(len(self.args), len(self.env)) > MAX_ARGUMENTS:
            raise ValueError(f"more than {MAX_ARGUMENTS} arguments or environment entries")
        if len(self.preopens) > MAX_PREOPENS:
            raise ValueError(f"{len(self.preopens)} directories, the bound is {MAX_PREOPENS}")
        if self.seed is not None and len(self.seed) != SEED_BYTES:
            raise ValueError(f"seed has {len(self.seed)} bytes, not {SEED_BYTES}")
        if self.clock is not None and self.clock.tzinfo is None:
            raise ValueError("clock must be an aware datetime")
        if self.profile is not Profile.DEFAULT and (self.seed is None or self.clock is None):
            raise ValueError(f"a run under profile {self.profile} needs a seed and a clock")

    @property
    def roots(self) -> tuple[tuple[str, bool], ...]:
        """The directories of the host that the run may see, and whether it may write there."""
        writable = {preopen.host_path for preopen in self.preopens if preopen.writable}
        paths = sorted({preopen.host_path for preopen in self.preopens})
        return tuple((path, path in writable) for path in paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReply:
    """What a guest gets for a host call."""

    response: bytes = field(repr=False)
    """Of `MAX_RESPONSE_BYTES` at most; what the guest reads."""
    log: bytes = field(default=b"", repr=False)
    """Goes to the guest's log as if the guest had written it, its limits included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trap:
    """Why the engine stopped the guest. Holds no address of the host."""

    name: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """The engine an artifact is bound to. All of it must be equal, or it is compiled anew."""

    profile: Profile = Profile.DEFAULT
    name: str
    version: str
    config_digest: str
    cpu_features: str
    """Sorted, comma-separated; the features that generated code may use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended: succeeded, failed, trapped or killed.

    ``exit_code``, ``limit`` and ``trap`` go with failed, killed and trapped.
    """

    outcome: Outcome
    exit_code: int | None = None
    limit: LimitName | None = None
    trap: Trap | None = None
    stdout: bytes = field(default=b"", repr=False)
    """Empty when the output was streamed to a sink."""
    stderr: bytes = field(default=b"", repr=False)
    resources: ResourcesUsed = NO_RESOURCES
    engine: EngineInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileLimits:
    """What one compilation may use; beyond it the compile worker dies alone."""

    module_bytes: int = 64 * 1024 * 1024
    artifact_bytes: int = MAX_ARTIFACT_BYTES
    wall: timedelta = timedelta(seconds=120)
    cpu: timedelta = timedelta(seconds=120)
    memory_bytes: int = 4 * 1024 * 1024 * 1024
    """Address space of the compile worker."""


DEFAULT_COMPILE_LIMITS: Final = CompileLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledArtifact:
    """What the compile worker wrote to the artifact's descriptor."""

    engine: EngineInfo
    artifact_bytes: int
    took: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStats:
    """A moment's view of the pool, and its counters since start."""

    slots: int
    busy: int
    warm: int
    """Loaded workers, idle and busy."""
    spares: int
    runs: int
    warm_hits: int
    spawned: int
    crashed: int
    discarded: int
    """Ended on purpose: after a trap, a kill or a cancellation, or evicted."""
