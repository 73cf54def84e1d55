"""What the node needs from a sandbox. The engine behind it is nobody else's business."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Protocol

from data_plane.sandbox.domain import (
    DEFAULT_COMPILE_LIMITS,
    CompiledArtifact,
    CompileLimits,
    HostReply,
    RunRequest,
    RunResult,
    SandboxStats,
    Stream,
)
from shared.digests import Digest
from shared.ids import TenantId
from shared.manifest import Profile
from shared.resources import ResourcesUsed

ArtifactOpener = Callable[[], Awaitable[int]]
"""Authenticates and opens the artifact and returns a new read-only descriptor, which the sandbox closes.

Called only when a worker has to be loaded; what it raises reaches the caller of ``run``.
"""

OutputSink = Callable[[Stream, bytes], Awaitable[None]]
"""Gets output as it flows, in the order of each stream. While it waits, the guest waits."""


class HostCalls(Protocol):
    """Answers what one guest asks by `agentfactory.call`."""

    async def answer(self, request: bytes, used: ResourcesUsed) -> HostReply:
        """Answer the exact bytes that the guest sent; `used` is what its worker says the run has used.

        The guest waits meanwhile. Denials and failures are answers. Cancelled when the run ends first.
        """
        ...


class Sandbox(Protocol):
    """Runs guests, at most its number of slots at once."""

    async def run(
        self,
        *,
        tenant_id: TenantId,
        module_digest: Digest,
        artifact: ArtifactOpener,
        request: RunRequest,
        stdin: AsyncIterator[bytes] | None = None,
        sink: OutputSink | None = None,
        host_calls: HostCalls | None = None,
        vouched_by: str = "",
    ) -> RunResult:
        """Run the module to an outcome; what the guest does wrong is an outcome, never an error.

        The worker used serves this tenant, module and profile only, for its life, and only runs with this
        ``vouched_by``: the compiler key on whose word the artifact counts, empty for none. ``stdin`` replaces
        ``request.stdin`` with chunks as they come; with ``sink`` the output goes there and the result's is
        empty. Without ``host_calls`` every host call is denied. Waits for a slot. Cancelling the call kills
        the worker.

        Raises:
            WorkerCrashedError: The worker ended without an outcome: killed from outside, or by a defect.
            ArtifactInvalidError: The artifact is damaged, or was made by another engine or for another CPU.
        """
        ...

    def retire(self, keys: Collection[str]) -> None:
        """End every worker whose code was loaded on the word of one of these compiler keys, busy or not."""
        ...

    def stats(self) -> SandboxStats:
        """Return the pool's state, for metrics and heartbeats."""
        ...


class Compiler(Protocol):
    """Compiles modules in a process of their own."""

    async def compile(
        self,
        *,
        module_fd: int,
        artifact_fd: int,
        profile: Profile = Profile.DEFAULT,
        limits: CompileLimits = DEFAULT_COMPILE_LIMITS,
    ) -> CompiledArtifact:
        """Read the module from ``module_fd``, write the artifact to the empty file ``artifact_fd``.

        Both descriptors stay the caller's. The artifact is not authenticated yet: that is the node's part.

        Raises:
            ModuleInvalidError: Not a module this engine runs; the message says why.
            WorkerCrashedError: The compiler died, or passed one of ``limits``; the message says which.
        """
        ...
