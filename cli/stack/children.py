"""Child processes that die with their parent, write to log files and are stopped within a bound.

Knows nothing about what the children are. A child has its own process group: Ctrl-C on the terminal reaches
only the parent, which then stops the children in the right order.
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from shared.errors import UnavailableError

STOP_GRACE: Final = timedelta(seconds=20)
"""From the polite signal to SIGKILL."""
MAX_LOG_BYTES: Final = 16 * 1024 * 1024
"""A log above this is moved aside, once, at the next start."""
TAIL_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to start and how to stop it."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    log: Path
    stop_signal: signal.Signals = signal.SIGTERM
    user: str | None = None
    """System user to run as; None: this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A started process."""

    spec: ChildSpec
    process: asyncio.subprocess.Process
    log_start: int
    """Where in the log this run begins."""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None

    def died(self) -> UnavailableError:
        """Return the error that says how it ended, with the last line of its log."""
        code = self.process.returncode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        last = last_line(self.spec.log)
        return UnavailableError(
            f"{self.spec.name} {how}{': ' + last if last else ''}", hint=f"its log is {self.spec.log}"
        )


def _launched(spec: ChildSpec) -> list[str]:
    """Return the command that starts the child bound to its parent's life, as the user it runs as.

    `setpriv` (util-linux) does both and then becomes the child. Code of our own between fork and exec would
    run beside the locks of gRPC's threads, and now and then crash there.
    """
    identity = [f"--reuid={spec.user}", f"--regid={spec.user}", "--clear-groups"] if spec.user else []
    death = f"--pdeathsig={spec.stop_signal.name.removeprefix('SIG')}"
    return ["setpriv", death, *identity, "--", *spec.arguments]


async def spawn(spec: ChildSpec) -> Child:
    """Start a process; its output goes to its log.

    Raises:
        UnavailableError: It cannot be started.
    """
    spec.log.parent.mkdir(parents=True, exist_ok=True)
    if spec.log.exists() and spec.log.stat().st_size > MAX_LOG_BYTES:
        spec.log.replace(spec.log.with_suffix(".log.1"))
    with spec.log.open("ab") as log:
        start = log.tell()
        try:
            process = await asyncio.create_subprocess_exec(
                *_launched(spec),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(spec.environment),
                start_new_session=True,
            )
        except OSError as error:
            raise UnavailableError(f"cannot start {spec.name}: {error.strerror}") from error
    return Child(spec=spec, process=process, log_start=start)


async def stop(child: Child, *, grace: timedelta = STOP_GRACE) -> None:
    """Ask a process to end, and kill its group when it does not within the grace."""
    if child.is_running:
        child.process.send_signal(child.spec.stop_signal)
        try:
            async with asyncio.timeout(grace.total_seconds()):
                await child.process.wait()
        except TimeoutError:
            os.killpg(child.pid, signal.SIGKILL)
            await child.process.wait()


def last_line(log: Path) -> str:
    """Return the last line of a log that says something, cut to what a terminal shows."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip(" |")[:400] for line in reversed(lines) if any(map(str.isalpha, line))), "")
