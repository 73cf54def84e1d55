"""A sandbox and a compiler without processes: what runs is a Python function."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta

from data_plane.sandbox.domain import (
    DEFAULT_COMPILE_LIMITS,
    CompiledArtifact,
    CompileLimits,
    EngineInfo,
    RunRequest,
    RunResult,
    SandboxStats,
)
from data_plane.sandbox.ports import ArtifactOpener, HostCalls, OutputSink
from shared.digests import Digest
from shared.ids import TenantId
from shared.manifest import Profile
from shared.outcomes import Outcome

Guest = Callable[[RunRequest], Awaitable[RunResult]]


class FakeSandbox:
    """Implements `Sandbox`. Loads the artifact on the first run of a (tenant, module, profile), as a worker does."""

    def __init__(self, engine: EngineInfo, *, slots: int = 4) -> None:
        self._engine = engine
        self._slots = asyncio.Semaphore(slots)
        self._count = slots
        self.loaded: dict[tuple[TenantId, Digest, Profile, str], bytes] = {}
        self.requests: list[RunRequest] = []
        self.guest: Guest = self.echo
        self.host_calls: HostCalls | None = None
        """Of the last run."""

    async def run(
        self,
        *,
        tenant_id: TenantId,
        module_digest: Digest,
        artifact: ArtifactOpener,
        request: RunRequest,
        stdin: object = None,
        sink: OutputSink | None = None,
        host_calls: HostCalls | None = None,
        vouched_by: str = "",
    ) -> RunResult:
        async with self._slots:
            name = (tenant_id, module_digest, request.profile, vouched_by)
            if name not in self.loaded:
                descriptor = await artifact()
                try:
                    self.loaded[name] = os.read(descriptor, 1 << 20)
                finally:
                    os.close(descriptor)
            self.requests.append(request)
            self.host_calls = host_calls
            return await self.guest(request)

    def retire(self, keys: Collection[str]) -> None:
        """Forget what was loaded on the word of these keys."""
        self.loaded = {name: loaded for name, loaded in self.loaded.items() if name[3] not in keys}

    def stats(self) -> SandboxStats:
        return SandboxStats(
            slots=self._count,
            busy=0,
            warm=len(self.loaded),
            spares=0,
            runs=len(self.requests),
            warm_hits=0,
            spawned=0,
            crashed=0,
            discarded=0,
        )

    async def echo(self, request: RunRequest) -> RunResult:
        """Give the input back."""
        return RunResult(outcome=Outcome.SUCCEEDED, exit_code=0, stdout=request.stdin, engine=self._engine)

    def result(self, outcome: Outcome, **changes: object) -> RunResult:
        return RunResult(outcome=outcome, engine=self._engine, **changes)


class FakeCompiler:
    """Implements `Compiler`: the artifact is the module with a word in front."""

    def __init__(self, engine: EngineInfo) -> None:
        self._engine = engine
        self.compilations = 0
        self.profiles: list[Profile] = []
        self.error: Exception | None = None

    async def compile(
        self,
        *,
        module_fd: int,
        artifact_fd: int,
        profile: Profile = Profile.DEFAULT,
        limits: CompileLimits = DEFAULT_COMPILE_LIMITS,
    ) -> CompiledArtifact:
        self.compilations += 1
        self.profiles.append(profile)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        artifact = b"compiled:" + os.pread(module_fd, 1 << 20, 0)
        os.write(artifact_fd, artifact)
        return CompiledArtifact(engine=self._engine, artifact_bytes=len(artifact), took=timedelta(0))
