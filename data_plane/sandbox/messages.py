"""The JSON payloads to and from a worker. What a worker says is checked here before anything uses it."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from data_plane.sandbox.domain import (
    MAX_LOG_LINE_BYTES,
    MAX_REQUEST_BYTES,
    MAX_RESPONSE_BYTES,
    CompiledArtifact,
    CompileLimits,
    EngineInfo,
    HostReply,
    Layer,
    LayerState,
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
    UnavailableError,
    WorkerCrashedError,
)
from shared.limits import LIMIT_FIELDS
from shared.manifest import Profile
from shared.outcomes import LimitName, Outcome
from shared.resources import MAX_SMALL_COUNT, ResourcesUsed

RawOutcome = dict[str, Any]
"""An outcome as a worker spells it; ``result_of`` and ``compiled_of`` check it field by field."""

MAX_EXIT_CODE: Final = 2**32 - 1
MAX_DURATION: Final = timedelta(days=365)
MAX_COUNT: Final = 2**53 - 1
MAX_TEXT_CHARS: Final = 4096
"""What a worker may say; beyond it nothing of what it says is believed."""

_LENGTH_BYTES: Final = 4
_RUN_OUTCOMES: Final = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TRAPPED, Outcome.KILLED})
_EXITED: Final = frozenset({Outcome.SUCCEEDED, Outcome.FAILED})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_REFUSALS: Final[dict[str, type[AgentFactoryError]]] = {
    "artifact_invalid": ArtifactInvalidError,
    "engine_mismatch": ArtifactInvalidError,
    "invalid_module": ModuleInvalidError,
    "artifact_too_large": ModuleInvalidError,
    "invalid_request": InvalidInputError,
    "disk_full": DiskFullError,
    "jail": UnavailableError,
}


def load_payload(engine: EngineInfo, roots: Sequence[tuple[str, bool]] = ()) -> bytes:
    """Return the payload of ``load`` in run mode; the descriptors of ``roots`` go after the artifact's."""
    message: dict[str, Any] = {"engine": engine_to_json(engine)}
    if roots:
        message["roots"] = [{"writable": writable} for _, writable in roots]
    return _dump(message)


def compile_payload(limits: CompileLimits, profile: Profile) -> bytes:
    """Return the payload of ``load`` in compile mode."""
    return _dump(
        {
            "profile": profile,
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
        "limits": {name: getattr(limits, name) for name in LIMIT_FIELDS},
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


def parse_host_call(payload: bytes) -> tuple[ResourcesUsed, bytes]:
    """Return what the run has used, and the guest's exact request.

    Raises:
        WorkerCrashedError: The payload is no ``host_call``.
    """
    size = int.from_bytes(payload[:_LENGTH_BYTES], "little")
    used, request = payload[_LENGTH_BYTES:][:size], payload[_LENGTH_BYTES + size :]
    if len(used) != size or len(request) > MAX_REQUEST_BYTES:
        raise WorkerCrashedError(f"worker sent a host call of {len(payload)} bytes that is none")
    try:
        return _resources(_parse(used)), request
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerCrashedError(f"worker sent a host call that is none: {error!r}") from error


def reply_payload(reply: HostReply) -> bytes:
    """Return the payload of ``host_reply``.

    Raises:
        ValueError: The reply is larger than the worker takes.
    """
    if len(reply.log) > MAX_LOG_LINE_BYTES or len(reply.response) > MAX_RESPONSE_BYTES:
        raise ValueError(f"host reply of {len(reply.log)} and {len(reply.response)} bytes")
    return len(reply.log).to_bytes(_LENGTH_BYTES, "little") + reply.log + reply.response


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
        raise error(_clean(str(message.get("message", reason))))
    return message


def result_of(message: RawOutcome, *, stdout: bytes, stderr: bytes, engine: EngineInfo) -> RunResult:
    """Return the result that the outcome of a run describes.

    Raises:
        WorkerCrashedError: A field is missing, of a wrong type, out of range, does not go with the outcome,
            or names something unknown.
    """
    try:
        trap = message.get("trap")
        limit = message.get("limit")
        outcome = Outcome(message["outcome"])
        _check_goes_with(outcome, limit, trap)
        return RunResult(
            outcome=outcome,
            exit_code=_exit_code(outcome, message.get("exit_code")),
            limit=None if limit is None else LimitName(limit),
            trap=None if trap is None else Trap(name=_text(trap["name"]), message=_text(trap["message"])),
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
            artifact_bytes=_count(compiled["artifact_bytes"]),
            took=_duration(compiled["compile_us"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerCrashedError(f"worker sent an outcome that is none: {error!r}") from error


def layers_from_json(value: Any) -> tuple[LayerState, ...]:
    """Return the layers of its jail that a worker names.

    Raises:
        WorkerCrashedError: A field is missing or of a wrong type, or a layer is unknown.
    """
    try:
        return tuple(
            LayerState(
                layer=Layer(entry["name"]), active=entry["active"] is True, detail=_text(entry["detail"])
            )
            for entry in value
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerCrashedError(f"worker names no layers: {error!r}") from error


def ready_layers(payload: bytes) -> tuple[LayerState, ...]:
    """Return the layers that hold around a worker that is ready.

    Raises:
        WorkerCrashedError: The payload is no ``ready``.
    """
    return layers_from_json(_parse(payload).get("jail"))


def engine_from_json(value: Any) -> EngineInfo:
    """Return the engine that a worker names.

    Raises:
        WorkerCrashedError: A field is missing or of a wrong type.
    """
    try:
        fields = {name: value[name] for name in ("name", "version", "config_digest", "cpu_features")}
        profile = Profile(value["profile"])
    except (KeyError, TypeError, ValueError) as error:
        raise WorkerCrashedError(f"worker names no engine: {error!r}") from error
    if not all(isinstance(field, str) for field in fields.values()):
        raise WorkerCrashedError("worker names no engine: a field is not text")
    return EngineInfo(profile=profile, **fields)


def engines_from_json(value: Any) -> Mapping[Profile, EngineInfo]:
    """Return the engine that a worker is under each profile.

    Raises:
        WorkerCrashedError: One is missing, or a field is missing or of a wrong type.
    """
    named = map(engine_from_json, value if isinstance(value, list) else ())
    engines = {engine.profile: engine for engine in named}
    if set(engines) != set(Profile):
        raise WorkerCrashedError("worker does not name its engine under every profile")
    return engines


def engine_to_json(engine: EngineInfo) -> dict[str, str]:
    """Return the engine as workers spell it."""
    return {
        "profile": engine.profile,
        "name": engine.name,
        "version": engine.version,
        "config_digest": engine.config_digest,
        "cpu_features": engine.cpu_features,
    }


def milliseconds(duration: timedelta) -> int:
    """Return whole milliseconds, at least one: zero would mean that nothing may run."""
    return max(1, duration // timedelta(milliseconds=1))


def _resources(value: dict[str, Any]) -> ResourcesUsed:
    return ResourcesUsed(
        wall=_duration(value["wall_us"]),
        cpu=_duration(value["cpu_us"]),
        peak_memory_bytes=_count(value["peak_memory_bytes"]),
        output_bytes=_count(value["stdout_bytes"]),
        log_bytes=_count(value["stderr_bytes"]),
        peak_open_files=_count(value["peak_open_files"], MAX_SMALL_COUNT),
        random_bytes=_count(value["random_bytes"]),
        table_elements=_count(value["table_elements"], MAX_SMALL_COUNT),
        log_lines=_count(value["log_lines"]),
        scratch_bytes=_count(value["scratch_bytes"]),
        scratch_inodes=_count(value["scratch_inodes"], MAX_SMALL_COUNT),
        fuel=_count(value["fuel"]),
        host_calls=_count(value["host_calls"], MAX_SMALL_COUNT),
        host_call_bytes=_count(value["host_call_bytes"]),
        host_call_time=_duration(value["host_call_us"]),
    )


def _exit_code(outcome: Outcome, value: Any) -> int | None:
    if outcome not in _RUN_OUTCOMES:
        raise ValueError(f"outcome {outcome}")
    if outcome not in _EXITED:
        return None
    code = _count(value, MAX_EXIT_CODE)
    if (code == 0) != (outcome is Outcome.SUCCEEDED):
        raise ValueError(f"exit code {code} of outcome {outcome}")
    return code


def _check_goes_with(outcome: Outcome, limit: Any, trap: Any) -> None:
    if (limit is not None, trap is not None) != (outcome is Outcome.KILLED, outcome is Outcome.TRAPPED):
        raise ValueError(f"limit {limit!r} and trap {trap!r} of outcome {outcome}")


def _duration(value: Any) -> timedelta:
    return timedelta(microseconds=_count(value, MAX_DURATION // timedelta(microseconds=1)))


def _count(value: Any, bound: int = MAX_COUNT) -> int:
    # A bool is an int to Python, and int() would take text and fractions for numbers.
    if type(value) is not int or not 0 <= value <= bound:
        raise ValueError(f"no integer from 0 to {bound}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return _clean(value)


def _clean(text: str) -> str:
    """JSON can spell half a surrogate pair, which no message or receipt can carry."""
    return text[:MAX_TEXT_CHARS].encode(errors="replace").decode()


def _dump(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def _parse(payload: bytes) -> dict[str, Any]:
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WorkerCrashedError("worker sent an outcome that is not JSON") from error
    if not isinstance(message, dict):
        raise WorkerCrashedError("worker sent an outcome that is no object")
    return message
