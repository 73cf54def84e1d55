"""What a replay needs, what it compares and what it cannot compare. No I/O, no clock, no randomness."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from data_plane.replay.recording import RecordedCall
from data_plane.sandbox.domain import EngineInfo, RunResult
from shared.digests import Digest, commit_body, same_digest, sha256_digest
from shared.errors import NotReplayableError, PackageAlteredError
from shared.manifest import Profile
from shared.orders import Order
from shared.outcomes import LimitName, Outcome
from shared.receipts import EXITED, ReceiptPredicate

TIME_LIMITS: Final = frozenset({LimitName.WALL_MS, LimitName.CPU_MS, LimitName.HOST_CALL_MS})
"""Never compared (rule 20): another machine is faster or slower."""
ENGINE_LIMITS: Final = frozenset({LimitName.FUEL, LimitName.STACK_BYTES})
"""Compared within one engine only: each counts and stacks in its own way."""
ALLOCATION_LIMITS: Final = frozenset({LimitName.MEMORY_BYTES, LimitName.TABLE_ELEMENTS})
"""Another engine ends its guest, too, but cannot tell which refusal was the reason."""
UNREPEATABLE_IMPORTS: Final = frozenset({"clock_time_get", "clock_res_get", "poll_oneoff", "random_get"})
"""What a guest under the profile `default` could tell one run from another by."""
_UNSUCCESSFUL: Final = frozenset({Outcome.FAILED, Outcome.TRAPPED})
WORKER_CRASHED: Final = "worker_crashed"


class PartName(StrEnum):
    """Bodies of an execution, as bundles and downloads call them."""

    INPUT = "input"
    OUTPUT = "output"
    LOG = "log"
    RECORDING = "recording"


@dataclass(frozen=True, slots=True, kw_only=True)
class SaltedBody:
    """A body with what its commitment is salted with."""

    content: bytes = field(repr=False)
    salt: bytes = field(repr=False)

    @property
    def commitment(self) -> Digest:
        return commit_body(self.content, self.salt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What an execution was made of. Nothing in it is believed before `check_material`."""

    module: bytes = field(repr=False)
    parameters: bytes = field(repr=False)
    bodies: Mapping[PartName, SaltedBody] = field(repr=False)


class StepResult(StrEnum):
    """What came of one step."""

    SAME = "same"
    DIFFERENT = "different"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One numbered step of a replay, in words."""

    name: str
    result: StepResult
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """A run again, and by what."""

    result: RunResult
    kv_writes_digest: Digest | None
    calls_asked: int
    mismatch: str = ""
    """The first host call that was not as recorded; empty: there was none."""


def check_material(order: Order, receipt: ReceiptPredicate, material: Material) -> None:
    """Let material pass that is exactly what a verified order and receipt commit to.

    1. The module has the digest that the order names.
    2. The parameters have theirs.
    3. Input, output, log and recording, as far as they are there, are what their salted commitments say.

    Raises:
        PackageAlteredError: One of them does not hold; the message numbers it.
    """
    if not same_digest(sha256_digest(material.module), order.module_digest):
        raise PackageAlteredError(f"check 1: the module is not {order.module_digest}")
    if not same_digest(sha256_digest(material.parameters), order.parameters_digest):
        raise PackageAlteredError(f"check 2: the parameters are not {order.parameters_digest}")
    committed = {
        PartName.INPUT: order.input_commitment,
        PartName.OUTPUT: receipt.output_commitment,
        PartName.LOG: receipt.log_commitment,
        PartName.RECORDING: receipt.recording_commitment,
    }
    for name, body in material.bodies.items():
        expected = committed[name]
        if expected is None or not same_digest(body.commitment, expected):
            raise PackageAlteredError(f"check 3: the {name} is not what its commitment says")


def require_comparable(receipt: ReceiptPredicate, engine: EngineInfo) -> None:
    """Let a run by this engine pass that there is something to compare of.

    Raises:
        NotReplayableError: It ended by a limit that engines count each in their own way.
    """
    if comparison_of(receipt, engine) is Comparison.ACROSS_ENGINES and receipt.limit in ENGINE_LIMITS:
        raise NotReplayableError(f"it was ended by {receipt.limit}, which is compared within one engine only")


def require_replayable(
    order: Order,
    receipt: ReceiptPredicate,
    material: Material,
    *,
    imports: frozenset[str],
    recording: tuple[RecordedCall, ...],
) -> None:
    """Let executions pass that can be run again with one possible result.

    Raises:
        NotReplayableError: This one cannot; the message says why.
    """
    why = (
        _outcome_obstacle(receipt)
        or _profile_obstacle(order, imports)
        or _body_obstacle(receipt, material)
        or _recording_obstacle(recording)
    )
    if why:
        raise NotReplayableError(why)


def _outcome_obstacle(receipt: ReceiptPredicate) -> str:
    if receipt.outcome in {Outcome.REJECTED, Outcome.CANCELLED}:
        return f"nothing ran to an end of its own: the outcome is {receipt.outcome}"
    if receipt.limit in TIME_LIMITS:
        return f"the guest was killed by {receipt.limit}, and time is never compared (rule 20)"
    if receipt.trap is not None and receipt.trap.startswith(WORKER_CRASHED):
        return "the worker crashed: there is no outcome to compare"
    if any(denial.reason == "recording_full" for denial in receipt.denials):
        return "the recording of its host calls was full: what came after is not in it"
    return ""


def _profile_obstacle(order: Order, imports: frozenset[str]) -> str:
    if order.profile is not Profile.DEFAULT:
        return ""
    asked = sorted(imports & UNREPEATABLE_IMPORTS)
    if asked:
        return f"under profile default the module may ask for {', '.join(asked)}, which nobody wrote down"
    if order.limits.has_scratch:
        return "under profile default files in /scratch show the times of their machine"
    return ""


def _body_obstacle(receipt: ReceiptPredicate, material: Material) -> str:
    needed = {PartName.INPUT: True, PartName.RECORDING: receipt.recording_commitment is not None}
    missing = [str(name) for name, is_needed in needed.items() if is_needed and name not in material.bodies]
    return f"the {missing[0]} was erased, or you may not see it" if missing else ""


def _recording_obstacle(recording: tuple[RecordedCall, ...]) -> str:
    for call in recording:
        if call.is_scrubbed:
            return (
                f"host call {call.index} ({call.method}) carried a secret: its recording is scrubbed,"
                " so it is not replayable"
            )
        if call.needs_recording and call.response is None:
            return (
                f"host call {call.index} ({call.method}) is recorded by its digests only:"
                " record_host_calls = true in agent.toml keeps the bytes"
            )
    return ""


class Comparison(StrEnum):
    """How strictly two runs are compared."""

    ONE_ENGINE = "one_engine"
    """Outcome, output, log, and under a profile that counts it fuel."""
    ACROSS_ENGINES = "across_engines"
    """Outcome, output and log; neither fuel nor where a stack is full."""


def comparison_of(receipt: ReceiptPredicate, engine: EngineInfo) -> Comparison:
    """Return how a run by ``engine`` is compared with the receipt's."""
    ran = receipt.engine
    same = ran is not None and (ran.name, ran.version, ran.config_digest) == (
        engine.name,
        engine.version,
        engine.config_digest,
    )
    return Comparison.ONE_ENGINE if same else Comparison.ACROSS_ENGINES


def compare(order: Order, receipt: ReceiptPredicate, material: Material, again: Rerun) -> tuple[Step, ...]:
    """Return the steps of a comparison: host calls, outcome, output, log, written keys, fuel."""
    result = again.result
    how = comparison_of(receipt, result.engine)
    if how is Comparison.ACROSS_ENGINES and {receipt.limit, result.limit} & ENGINE_LIMITS:
        words = f"ended by {receipt.limit or result.limit}: compared within one engine only"
        return (Step(name="outcome", result=StepResult.SKIPPED, words=words),)
    if result.limit in TIME_LIMITS:
        words = f"the run again passed {result.limit}: time is never compared (rule 20)"
        return (Step(name="outcome", result=StepResult.SKIPPED, words=words),)
    return (
        _calls_step(again),
        _outcome_step(receipt, result, how),
        _body_step("output", receipt.output_commitment, material.bodies.get(PartName.OUTPUT), result.stdout),
        _body_step("log", receipt.log_commitment, material.bodies.get(PartName.LOG), result.stderr),
        _writes_step(receipt, again),
        _fuel_step(order, receipt, result, how),
    )


def _calls_step(again: Rerun) -> Step:
    if again.mismatch:
        return Step(name="host calls", result=StepResult.DIFFERENT, words=again.mismatch)
    words = f"{again.calls_asked} host calls, each asked as it was recorded" if again.calls_asked else "none"
    return Step(name="host calls", result=StepResult.SAME, words=words)


def _outcome_step(receipt: ReceiptPredicate, result: RunResult, how: Comparison) -> Step:
    is_across = how is Comparison.ACROSS_ENGINES
    if is_across and receipt.limit in ALLOCATION_LIMITS and result.outcome in _UNSUCCESSFUL:
        words = f"{receipt.limit} ended it then, {result.outcome} now: another engine does not say by what"
        return Step(name="outcome", result=StepResult.SKIPPED, words=words)
    then = _outcome_words(receipt.outcome, receipt.exit_code, receipt.limit, receipt.trap, how)
    trap = None if result.trap is None else f"{result.trap.name}: {result.trap.message}"
    now = _outcome_words(result.outcome, result.exit_code, result.limit, trap, how)
    return _step("outcome", then, now)


def _outcome_words(
    outcome: Outcome, code: int | None, limit: LimitName | None, trap: str | None, how: Comparison
) -> str:
    # Engines agree about why they stop a guest, not about the words for it.
    reason = trap if trap is None or how is Comparison.ONE_ENGINE else trap.partition(":")[0]
    return " ".join(str(part) for part in (outcome, code, limit, reason) if part is not None)


def _body_step(name: str, commitment: Digest | None, body: SaltedBody | None, again: bytes) -> Step:
    if commitment is None:
        return _step(name, "0 bytes", f"{len(again)} bytes")
    if body is None:
        return Step(name=name, result=StepResult.SKIPPED, words="erased: its commitment cannot be opened")
    if same_digest(commit_body(again, body.salt), commitment):
        return Step(name=name, result=StepResult.SAME, words=f"{len(again)} bytes, each the same")
    at = next((i for i, pair in enumerate(zip(body.content, again, strict=False)) if pair[0] != pair[1]), -1)
    at = min(len(body.content), len(again)) if at < 0 else at
    words = f"{len(body.content)} bytes then, {len(again)} now, different from byte {at} on"
    return Step(name=name, result=StepResult.DIFFERENT, words=words)


def _writes_step(receipt: ReceiptPredicate, again: Rerun) -> Step:
    now = again.kv_writes_digest if again.result.outcome in EXITED else None
    return _step("kv writes", receipt.kv_writes_digest or "none", now or "none")


def _fuel_step(order: Order, receipt: ReceiptPredicate, result: RunResult, how: Comparison) -> Step:
    if how is Comparison.ACROSS_ENGINES:
        words = "another engine or configuration: fuel is compared within one only"
        return Step(name="fuel", result=StepResult.SKIPPED, words=words)
    if order.profile is Profile.DEFAULT:
        return Step(name="fuel", result=StepResult.SKIPPED, words="profile default counts none")
    return _step("fuel", str(receipt.resources.fuel), str(result.resources.fuel))


def _step(name: str, then: str, now: str) -> Step:
    if then == now:
        return Step(name=name, result=StepResult.SAME, words=then)
    return Step(name=name, result=StepResult.DIFFERENT, words=f"{then} then, {now} now")


def differs(steps: tuple[Step, ...]) -> bool:
    """Whether one step came out otherwise."""
    return any(step.result is StepResult.DIFFERENT for step in steps)
