"""Replays on a second engine: PyPI wasmtime in a child process, under a WASI of our own (`preview1`).

For agents of the profile `portable` without `/scratch`. The child is bounded, not jailed: docs/replay.md.
"""

import asyncio
import base64
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Self

from data_plane.replay.recording import PlayedCalls
from data_plane.sandbox.domain import MAX_REQUEST_BYTES, EngineInfo, RunRequest, RunResult, Trap
from shared.digests import sha256_digest
from shared.errors import NotReplayableError, UnavailableError, WorkerCrashedError
from shared.manifest import Profile
from shared.outcomes import LimitName, Outcome
from shared.resources import ResourcesUsed

CONFIGURATION: Final = (
    "revision=1;compiler=cranelift;nan=canonical;relaxed_simd=no;threads=no;"
    "wasi=preview1-python;metering=none"
)
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Of one frame of the child's: two bodies of 16 MiB in base64."""
SLOWER: Final = 20
"""How many times the limits of the order a run may take here: every WASI call goes through Python."""
COMPILE_PATIENCE: Final = timedelta(seconds=120)
_HEADER_BYTES: Final = 5
_JOB, _MODULE, _CALL, _REPLY, _OUTCOME = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class WasmtimeEngine:
    """Implements `ReplayEngine`."""

    version: str

    @classmethod
    def open(cls) -> Self:
        """Return the installed engine.

        Raises:
            UnavailableError: It is not installed.
        """
        try:
            return cls(version=version("wasmtime"))
        except PackageNotFoundError as error:
            raise UnavailableError(
                "the second engine is not installed", hint="pip install 'agentfactory[replay]'"
            ) from error

    def engine(self, profile: Profile) -> EngineInfo:
        """See `ReplayEngine.engine`."""
        return EngineInfo(
            profile=profile,
            name="wasmtime",
            version=self.version,
            config_digest=sha256_digest(CONFIGURATION.encode()),
            cpu_features="",
        )

    async def run(self, module: bytes, request: RunRequest, calls: PlayedCalls) -> RunResult:
        """See `ReplayEngine.run`."""
        if request.profile is not Profile.PORTABLE:
            raise NotReplayableError(
                f"profile {request.profile} promises nothing about other engines: only portable does"
            )
        if request.scratch or request.preopens:
            raise NotReplayableError(
                "the second engine has no directories, and the agent was granted /scratch"
            )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "data_plane.replay.wasmtime_child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            cwd="/",
            limit=MAX_ANSWER_BYTES,
        )
        patience = COMPILE_PATIENCE + SLOWER * request.limits.wall
        try:
            async with asyncio.timeout(patience.total_seconds()):
                told = await _converse(process, module, request, calls)
        except TimeoutError as error:
            raise NotReplayableError(f"the second engine took more than {patience}") from error
        except (asyncio.IncompleteReadError, BrokenPipeError, ConnectionResetError) as error:
            raise WorkerCrashedError("the second engine ended without an outcome") from error
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        return _result_of(told, self.engine(request.profile))


async def _converse(
    process: asyncio.subprocess.Process, module: bytes, request: RunRequest, calls: PlayedCalls
) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    _send(process.stdin, _JOB, json.dumps(_job(request)).encode())
    _send(process.stdin, _MODULE, module)
    await process.stdin.drain()
    while True:
        header = await process.stdout.readexactly(_HEADER_BYTES)
        size, kind = int.from_bytes(header[:4], "little"), header[4]
        if size > MAX_ANSWER_BYTES or kind not in {_CALL, _OUTCOME}:
            raise WorkerCrashedError(f"the second engine sent frame {kind} of {size} bytes")
        message = _parsed(await process.stdout.readexactly(size))
        if kind == _OUTCOME:
            return message
        asked = _bytes(message, "request")
        if len(asked) > MAX_REQUEST_BYTES:
            raise WorkerCrashedError("the second engine passed on a host call that is too large")
        reply = await calls.answer(asked, _used(message))
        answer = {name: base64.b64encode(getattr(reply, name)).decode() for name in ("response", "log")}
        _send(process.stdin, _REPLY, json.dumps(answer).encode())
        await process.stdin.drain()


def _send(pipe: asyncio.StreamWriter, kind: int, payload: bytes) -> None:
    pipe.write(len(payload).to_bytes(4, "little") + bytes([kind]) + payload)


def _job(request: RunRequest) -> dict[str, Any]:
    assert request.seed is not None
    assert request.clock is not None
    seconds = (SLOWER * request.limits.cpu + COMPILE_PATIENCE) // timedelta(seconds=1)
    return {
        "args": request.args,
        "env": request.env,
        "stdin": base64.b64encode(request.stdin).decode(),
        "limits": asdict(request.limits),
        "profile": request.profile,
        "seed": request.seed.hex(),
        "clock": request.clock.isoformat(),
        "cpu_seconds": seconds,
    }


def _parsed(payload: bytes) -> dict[str, Any]:
    try:
        message = json.loads(payload)
    except ValueError as error:
        raise WorkerCrashedError("the second engine sent something that is not JSON") from error
    if not isinstance(message, dict):
        raise WorkerCrashedError("the second engine sent something that is no object")
    return message


def _bytes(message: Mapping[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(message[name], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerCrashedError(f"the second engine sent no {name}") from error


def _used(message: Mapping[str, Any]) -> ResourcesUsed:
    names = ("output_bytes", "log_bytes", "log_lines", "random_bytes", "host_calls", "host_call_bytes")
    try:
        used = message["used"]
        counts: dict[str, Any] = {name: int(used[name]) for name in (*names, "peak_memory_bytes")}
        return ResourcesUsed(**counts, wall=timedelta(microseconds=int(message.get("wall_us", 0))))
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerCrashedError(f"the second engine does not say what was used: {error!r}") from error


def _result_of(told: Mapping[str, Any], engine: EngineInfo) -> RunResult:
    if told.get("outcome") == "":
        raise NotReplayableError(f"the second engine cannot run it: {str(told.get('message', ''))[:256]!r}")
    try:
        trap, limit, code = told.get("trap"), told.get("limit"), told.get("exit_code")
        return RunResult(
            outcome=Outcome(told["outcome"]),
            exit_code=None if code is None else int(code),
            limit=None if limit is None else LimitName(limit),
            trap=None if trap is None else Trap(name=str(trap["name"]), message=str(trap["message"])),
            stdout=_bytes(told, "stdout"),
            stderr=_bytes(told, "stderr"),
            resources=_used(told),
            engine=engine,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerCrashedError(f"the second engine sent an outcome that is none: {error!r}") from error
