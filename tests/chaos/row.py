"""One row of build/chaos.json: what one fault has cost, beside the bars. Pure; measures from times it is given."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.facts import Facts
from tests.chaos.judge import Verdict
from tests.chaos.load import SUCCEEDED, Ledger

MAX_P95_MS = 100.0
MAX_DETECTION_SECONDS = 5.0
MAX_RECOVERY_SECONDS = 10.0
RECOVERED_SHARE = 0.9
"""Of the earlier throughput; arrivals are constant, so less is a system that does not keep up."""
WINDOW_SECONDS = 3.0
"""Long enough that a stall of this machine is not taken for an outage."""
STEP_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When what happened, in seconds of this machine's clock."""

    loaded_at: float
    """From here on the load counts as the earlier throughput."""
    injected_at: float
    lifted_at: float
    ended_at: float
    """The last arrivals were before this."""


@dataclass(slots=True, kw_only=True)
class Row:
    """What one fault has cost."""

    fault: str
    says: str
    acknowledged: int = 0
    lost: int = 0
    accepted_twice: int = 0
    stale_accepted: int = 0
    receipts_missing: int = 0
    orders_unsigned: int = 0
    """Receipts whose order has no signature on record."""
    p95_ms: float | None = None
    """While it held, outside the detection window; None where nothing was measured."""
    p95_before_ms: float | None = None
    slowest_ms: float | None = None
    """The slowest call that was due while it held."""
    detection_seconds: float | None = None
    """From the injection until the last attempt was given up that it cost; None: it cost none."""
    recovery_seconds: float | None = None
    """From the lifting until throughput was the earlier one for good; None: never."""
    capacity_per_second: float = 0.0
    rate_per_second: float = 0.0
    earlier_per_second: float = 0.0
    others_cores: float = 0.0
    """How many of this machine's cores were busy meanwhile with what is none of ours."""
    proof: str = ""
    failures: list[str] = field(default_factory=list)
    """What was lost or doubled, and every bar that was missed."""
    slow: list[str] = field(default_factory=list)
    """Which of the failures are only about time."""
    notes: list[str] = field(default_factory=list)
    took_seconds: float = 0.0
    tries: int = 1

    @property
    def ok(self) -> bool:
        return not self.failures


def fill(row: Row, *, ledger: Ledger, facts: Facts, verdict: Verdict, times: Times, nodes_off: bool) -> None:
    """Complete a row with what was measured, and name every bar that is missed."""
    row.acknowledged, row.lost = verdict.acknowledged, verdict.lost
    row.accepted_twice, row.stale_accepted = verdict.accepted_twice, verdict.stale_accepted
    row.receipts_missing, row.orders_unsigned = verdict.receipts_missing, verdict.orders_unsigned
    row.notes += verdict.notes
    found = latencies(ledger)
    row.p95_before_ms = p95_ms(found, times.loaded_at, times.injected_at)
    row.p95_ms = p95_ms(found, times.injected_at + MAX_DETECTION_SECONDS, times.lifted_at)
    held = [seconds for due_at, seconds in found if times.injected_at <= due_at < times.lifted_at]
    row.slowest_ms = round(max(held) * 1e3, 1) if held else None
    row.detection_seconds = detection(facts, times)
    ends = [each.ended_at.timestamp() for each in facts.executions if each.ended_at is not None]
    row.earlier_per_second = rate(ends, times.loaded_at, times.injected_at)
    row.recovery_seconds = recovery(ends, row.earlier_per_second, times)
    row.slow = _slow(row, nodes_off=nodes_off)
    row.failures += _wrong(row, ledger) + row.slow


def _wrong(row: Row, ledger: Ledger) -> list[str]:
    zero = ("lost", "accepted_twice", "stale_accepted", "receipts_missing", "orders_unsigned")
    missed = [f"{name} = {getattr(row, name)}" for name in zero if getattr(row, name)]
    if not row.acknowledged:
        missed.append("nothing was acknowledged: nothing was tested")
    if ledger.unanswered:
        missed.append(f"{ledger.unanswered} calls were never answered")
    missed += [f"{count} callers were told {what}" for what, count in ledger.refusals.items()]
    return missed


def _slow(row: Row, *, nodes_off: bool) -> list[str]:
    missed = []
    if row.recovery_seconds is None or row.recovery_seconds > MAX_RECOVERY_SECONDS:
        missed.append(f"recovery took {row.recovery_seconds} s, bar {MAX_RECOVERY_SECONDS:g} s")
    if nodes_off and (row.detection_seconds or 0) > MAX_DETECTION_SECONDS:
        missed.append(f"noticed after {row.detection_seconds} s, bar {MAX_DETECTION_SECONDS:g} s")
    if nodes_off and (row.p95_ms is None or row.p95_ms >= MAX_P95_MS):
        missed.append(f"p95 with a node off is {row.p95_ms} ms, bar {MAX_P95_MS:g} ms")
    return missed


def latencies(ledger: Ledger) -> list[tuple[float, float]]:
    """Return when each call was due that waited for its end, and the seconds until it was told."""
    return [
        (call.due_at, call.seconds)
        for call in ledger.calls
        if call.waits and call.seconds is not None and call.state == SUCCEEDED
    ]


def p95_ms(latencies: Sequence[tuple[float, float]], start: float, end: float) -> float | None:
    """Return the 95th percentile of the calls due in a span; None when there are none."""
    found = sorted(seconds for due_at, seconds in latencies if start <= due_at < end)
    if not found:
        return None
    return round(found[min(len(found) - 1, int(0.95 * len(found)))] * 1e3, 1)


def detection(facts: Facts, times: Times) -> float | None:
    """Return from the injection to the last attempt that was given up while the fault held; None: none was."""
    given_up = [
        attempt.ended_at.timestamp() - times.injected_at
        for attempt in facts.attempts
        if attempt.state == "lost" and attempt.ended_at is not None
    ]
    during = [seconds for seconds in given_up if 0 <= seconds < times.lifted_at - times.injected_at]
    return round(max(during), 2) if during else None


def rate(ends: Sequence[float], start: float, end: float) -> float:
    """Return executions per second that ended in a span."""
    return round(sum(start <= at < end for at in ends) / (end - start), 2)


def recovery(ends: Sequence[float], earlier: float, times: Times) -> float | None:
    """Return how long after the lifting every later window has the earlier throughput; None: not before the end."""
    starts = []
    start = times.lifted_at
    while start + WINDOW_SECONDS <= times.ended_at:
        starts.append(start)
        start += STEP_SECONDS
    slow = [at for at in starts if rate(ends, at, at + WINDOW_SECONDS) < RECOVERED_SHARE * earlier]
    if not earlier or not starts or (slow and slow[-1] == starts[-1]):
        return None
    return round(slow[-1] + STEP_SECONDS - times.lifted_at, 2) if slow else 0.0
