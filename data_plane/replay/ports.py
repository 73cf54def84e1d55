"""What a replay needs: something that runs a guest."""

from typing import Protocol

from data_plane.replay.recording import PlayedCalls
from data_plane.sandbox.domain import EngineInfo, RunRequest, RunResult
from shared.manifest import Profile


class ReplayEngine(Protocol):
    """Runs one module to an outcome, in a process of its own."""

    def engine(self, profile: Profile) -> EngineInfo:
        """Return what it is under a profile."""
        ...

    async def run(self, module: bytes, request: RunRequest, calls: PlayedCalls) -> RunResult:
        """Run the module to an outcome.

        Raises:
            NotReplayableError: This engine cannot run it; the message says why.
            ModuleInvalidError: It is no module that the engine takes.
            UnavailableError, WorkerCrashedError: There is no outcome.
        """
        ...
