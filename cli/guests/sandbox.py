"""Runs a built module here as a node would: the manifest's limits and capabilities, a real worker."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cli.guests.recording import Played, Recorded, StandInSecrets, stand_in_models
from cli.sandbox_calls import TENANT, CallRules
from data_plane.host_calls.http_fetch import AllowedHttp
from data_plane.host_calls.llm_complete import LlmPolicy
from data_plane.host_calls.service import AttemptCalls
from data_plane.sandbox.domain import SEED_BYTES, RunRequest, RunResult
from shared.digests import sha256_digest
from shared.limits import grant_limits
from shared.manifest import Manifest, Profile
from shared.receipts import Denial

CLOCK: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Where the clock of a repeatable run starts."""
_MAX_ARTIFACTS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a run ended, and what was denied to it."""

    result: RunResult
    denials: tuple[Denial, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A sandbox of one's own for one module after the other."""

    cache: Path
    secrets: Path | None = None
    llm: LlmPolicy = field(default_factory=LlmPolicy)
    """The models of a run without a recording; none by default."""

    async def run(
        self, manifest: Manifest, module: bytes, body: bytes, *, recording: Recorded | None = None
    ) -> Ran:
        """Run the module once with this input.

        Raises:
            ModuleInvalidError: It does not compile.
            UnavailableError, WorkerCrashedError: The sandbox is not available here.
        """
        async with self.opened(manifest, module, recording=recording) as run:
            return await run(body)

    @asynccontextmanager
    async def opened(
        self, manifest: Manifest, module: bytes, *, recording: Recorded | None = None
    ) -> AsyncIterator[Callable[[bytes], Awaitable[Ran]]]:
        """Yield what runs the module with one input after the other, in one worker; raises as `run`."""
        from agentfactory_engine import worker_path

        from data_plane.sandbox.engine import read_engines
        from data_plane.sandbox.pool import WorkerPool

        worker, digest = worker_path(), sha256_digest(module)
        engines = await read_engines(worker)
        path = await self._artifact(module, manifest.profile, engines[manifest.profile].config_digest)

        async def artifact() -> int:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

        async with WorkerPool(
            worker_path=worker, engine=engines[Profile.DEFAULT], engines=engines, slots=1, spares=0
        ) as pool:

            async def run(body: bytes) -> Ran:
                request = _request(manifest, body)
                with self._calls(manifest, request, recording) as calls:
                    result = await pool.run(
                        tenant_id=TENANT,
                        module_digest=digest,
                        artifact=artifact,
                        request=request,
                        host_calls=calls,
                    )
                return Ran(result=result, denials=tuple(calls.conclude().denials))

            yield run

    async def _artifact(self, module: bytes, profile: Profile, config_digest: str) -> Path:
        """Return the compiled module, from the cache, which belongs to whoever builds."""
        from agentfactory_engine import worker_path

        from data_plane.sandbox.compiler import WorkerCompiler

        name = sha256_digest(module + config_digest.encode()).removeprefix("sha256:")
        folder = self.cache / "artifacts"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / name
        if path.exists():
            os.utime(path)
            return path
        made = folder / f".{name}.{os.getpid()}"
        module_fd = os.memfd_create("module")
        artifact_fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(module_fd, module)
            os.lseek(module_fd, 0, os.SEEK_SET)
            await WorkerCompiler(worker_path=worker_path()).compile(
                module_fd=module_fd, artifact_fd=artifact_fd, profile=profile
            )
            made.replace(path)
        finally:
            os.close(module_fd)
            os.close(artifact_fd)
            made.unlink(missing_ok=True)
        kept = sorted(folder.iterdir(), key=lambda each: each.stat().st_mtime, reverse=True)
        for old in kept[_MAX_ARTIFACTS:]:
            old.unlink(missing_ok=True)
        return path

    def _calls(
        self, manifest: Manifest, request: RunRequest, recording: Recorded | None
    ) -> AbstractContextManager[AttemptCalls]:
        """The manifest stands for policy and operator too: what it asks for it gets."""
        asked = manifest.capabilities
        networks = sorted({each for one in asked.http for each in one.addresses})
        allowed = tuple(AllowedHttp.parse(f"{one.method} {one.url}") for one in asked.http)
        rules = replace(
            CallRules.read([], networks, self.secrets), allowed=allowed, granted=asked, llm=self.llm
        )
        if recording is not None:
            rules = replace(rules, outside=Played(recording), kv=recording.kv, llm=stand_in_models(asked.llm))
        if recording is not None and self.secrets is None:
            rules = replace(rules, secrets=StandInSecrets(urls=tuple(each.prefix for each in allowed)))
        return rules.calls_of(request)


def _request(manifest: Manifest, body: bytes) -> RunRequest:
    repeatable = manifest.profile is not Profile.DEFAULT
    return RunRequest(
        args=(manifest.name,),
        env=(("AGENTFACTORY_PARAMETERS", "{}"),),
        stdin=body,
        limits=grant_limits(manifest.limits),
        profile=manifest.profile,
        seed=bytes(SEED_BYTES) if repeatable else None,
        clock=CLOCK if repeatable else None,
    )
