"""The JSON payloads to and from a worker. What a worker says is checked here before anything uses it."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from data_plane.sandbox.domain import (
    CompiledArtifact,
    CompileLimits,
    EngineInfo,
    LimitName,
    Outcome,
    Resources,
    RunRequest,
    RunResult,
    Trap,
)
from shared.errors import (
    AgentFactoryError,
    ArtifactInvalidError,
    DiskFullError,
    InvalidInputError,
    ModuleInvalidError,
    WorkerCrashedError,
)

RawOutcome = dict[str, Any]
"""An outcome as a worker spells it; ``result_of`` and ``compiled_of`` check it field by field."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_REFUSALS: Final[dict[str, type[AgentFactoryError]]] = {
    "artifact_invalid": ArtifactInvalidError,
    "engine_mismatch": ArtifactInvalidError,
    "invalid_module": ModuleInvalidError,
    "artifact_too_large": ModuleInvalidError,
    "invalid_request": InvalidInputError,
    "disk_full": DiskFullError,
}


def load_payload(engine: EngineInfo) -> bytes:
    """Return the payload of ``load`` in run mode."""
    return _dump({"engine": engine_to_json(engine)})


def compile_payload(limits: CompileLimits) -> bytes:
    """Return the payload of ``load`` in compile mode."""
    return _dump(
        {
            "module_bytes": limits.module_bytes,
            "artifact_bytes": limits.artifact_bytes,
            "memory_bytes": limits.memory_bytes,
            "cpu_ms": milliseconds(limits.cpu),
            "wall_ms": milliseconds(limits.wall),
        }
    )


def run_payload(request: RunRequest) -> bytes:
    """Return the payload of ``run``."""
    limits = request.limits
    message: dict[str, Any] = {
        "args": request.args,
        "limits": {
            "wall_ms": milliseconds(limits.wall),
            "cpu_ms": milliseconds(limits.cpu),
            "memory_bytes": limits.memory_bytes,
            "output_bytes": limits.output_bytes,
            "log_bytes": limits.log_bytes,
            "open_files": limits.open_files,
        },
    }
    if request.env:
        message["env"] = request.env
    if request.seed is not None:
        message["seed"] = request.seed.hex()
    if request.clock is not None:
        message["clock"] = (request.clock - _EPOCH) // timedelta(microseconds=1) * 1000
    if request.preopens:
        message["preopens"] = [
            {"guest_path": preopen.guest_path, "writable": preopen.writable} for preopen in request.preopens
        ]
    return _dump(message)


def parse_outcome(payload: bytes) -> RawOutcome:
    """Return the outcome a worker sent.

    Raises:
        AgentFactoryError: The worker refused: of the class that belongs to its reason.
        WorkerCrashedError: The payload is no outcome.
    """
    message = _parse(payload)
    if message.get("outcome") == Outcome.REJECTED:
        reason = message.get("reason")
        error = _REFUSALS.get(reason if isinstance(reason, str) else "", WorkerCrashedError)
        raise error(str(message.get("message", reason)))
    return message


def result_of(message: RawOutcome, *, stdout: bytes, stderr: bytes, engine: EngineInfo) -> RunResult:
    """Return the result that the outcome of a run describes.

    Raises:
        WorkerCrashedError: A field is missing, of a wrong type, or names something unknown.
    """
    try:
        trap = message.get("trap")
        limit = message.get("limit")
        return RunResult(
            outcome=Outcome(message["outcome"]),
            exit_code=message.get("exit_code"),
            limit=None if limit is None else LimitName(limit),
            trap=None if trap is None else Trap(name=str(trap["name"]), message=str(trap["message"])),
            stdout=stdout,
            stderr=stderr,
            resources=_resources(message["resources"]),
            engine=engine,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerCrashedError(f"worker sent an outcome that is none: {error!r}") from error


def compiled_of(message: RawOutcome) -> CompiledArtifact:
    """Return what the outcome of a compilation describes.

    Raises:
        WorkerCrashedError: A field is missing or of a wrong type.
    """
    try:
        compiled = message["compiled"]
        return CompiledArtifact(
            engine=engine_from_json(compiled["engine"]),
            artifact_bytes=int(compiled["artifact_bytes"]),
            took=timedelta(microseconds=int(compiled["compile_us"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerCrashedError(f"worker sent an outcome that is none: {error!r}") from error


def engine_from_json(value: Any) -> EngineInfo:
    """Return the engine that a worker names.

    Raises:
        WorkerCrashedError: A field is missing or of a wrong type.
    """
    try:
        fields = {name: value[name] for name in ("name", "version", "config_digest", "cpu_features")}
    except (KeyError, TypeError) as error:
        raise WorkerCrashedError(f"worker names no engine: {error!r}") from error
    if not all(isinstance(field, str) for field in fields.values()):
        raise WorkerCrashedError("worker names no engine: a field is not text")
    return EngineInfo(**fields)


def engine_to_json(engine: EngineInfo) -> dict[str, str]:
    """Return the engine as workers spell it."""
    return {
        "name": engine.name,
        "version": engine.version,
        "config_digest": engine.config_digest,
        "cpu_features": engine.cpu_features,
    }


def milliseconds(duration: timedelta) -> int:
    """Return whole milliseconds, at least one: zero would mean that nothing may run."""
    return max(1, duration // timedelta(milliseconds=1))


def _resources(value: dict[str, Any]) -> Resources:
    return Resources(
        wall=timedelta(microseconds=int(value["wall_us"])),
        cpu=timedelta(microseconds=int(value["cpu_us"])),
        peak_memory_bytes=int(value["peak_memory_bytes"]),
        output_bytes=int(value["stdout_bytes"]),
        log_bytes=int(value["stderr_bytes"]),
        peak_open_files=int(value["peak_open_files"]),
        random_bytes=int(value["random_bytes"]),
    )


def _dump(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def _parse(payload: bytes) -> dict[str, Any]:
    try:
        message = json.loads(payload)
    except ValueError as error:
        raise WorkerCrashedError("worker sent an outcome that is not JSON") from error
    if not isinstance(message, dict):
        raise WorkerCrashedError("worker sent an outcome that is no object")
    return message
