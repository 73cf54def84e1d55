"""What must hold, whatever fails: looked at when anything changes, and once more when the world has healed.

Judges what the parts did; takes no part. Knows nothing of how the parts work, only of what they promise.
Once there is a log, what it promises belongs here too: every receipt that the store has is a leaf, once.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from control_plane.executions.domain import Disposition, ExecutionState, Outcome
from control_plane.executions.lifecycle import Execution, Finished
from shared.ids import ExecutionId
from shared.orders import Order
from tests.simulation.loop import Process, VirtualLoop, current_process

MAX_TRACE_LINES = 20_000

_NOT_HONEST = {
    ExecutionState.REJECTED,
    ExecutionState.FAILED,
    ExecutionState.TRAPPED,
    ExecutionState.KILLED,
}
"""No guest here does anything wrong, and no order is anything but what was signed."""


class ViolationError(AssertionError):
    """Something happened that must never happen."""


@dataclass
class Trace:
    """What happened, one line each, in order."""

    loop: VirtualLoop
    lines: list[tuple[float, str, str]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    def note(self, text: str, *, who: str | None = None) -> None:
        if len(self.lines) < MAX_TRACE_LINES:
            process = current_process()
            name = who or (process.name if process is not None else "world")
            self.lines.append((self.loop.time(), name, text))

    def fault(self, kind: str, text: str = "") -> None:
        """Count a fault; those with a text are worth a line."""
        self.faults[kind] += 1
        if text:
            self.note(f"!! {kind}: {text}")

    def digest(self) -> str:
        """Equal for two lives in which the same happened at the same times."""
        hasher = hashlib.sha256()
        for at, who, text in self.lines:
            hasher.update(f"{at:.6f} {who} {text}\n".encode())
        return hasher.hexdigest()

    def render(self, last: int = 200) -> str:
        shown = self.lines[-last:]
        left = len(self.lines) - len(shown)
        head = [f"... {left} lines before"] if left else []
        return "\n".join(head + [f"{at:10.4f}  {who:4}  {text}" for at, who, text in shown])


@dataclass
class GuestRun:
    """One guest that runs now."""

    order: Order
    process: Process


class Watch:
    """The invariants. The first that does not hold is kept and ends the life."""

    def __init__(self, loop: VirtualLoop, trace: Trace) -> None:
        self._loop = loop
        self._trace = trace
        self.violation: ViolationError | None = None
        self.executions: Mapping[ExecutionId, Execution] = {}
        """The store's, as it is."""
        self.acknowledged: dict[str, str] = {}
        """Execution by request: what clients were promised."""
        self.answers: dict[str, Execution] = {}
        """What clients were told at the end of an execution."""
        self.cancelled: set[str] = set()
        """Whose end was asked for."""
        self.hurried: set[str] = set()
        """Which have a run deadline of seconds."""
        self.written: dict[str, dict[int, bytes]] = defaultdict(dict)
        """Receipts that are on the disk of a node for good: hashes by sequence."""
        self.stored: dict[str, dict[int, tuple[bytes, bytes]]] = defaultdict(dict)
        """Receipts in the store, with the hash of the one before."""
        self._tokens: dict[str, int] = {}
        self._deciding: dict[str, str] = {}
        self._runs: Counter[str] = Counter()
        self._guests: list[GuestRun] = []

    def violate(self, rule: str, text: str) -> None:
        """Note that a rule was broken."""
        if self.violation is None:
            self.violation = ViolationError(f"{rule}: {text}")
            self._trace.note(f"** {rule}: {text}")

    # --- executions

    def placed(self, execution_id: str, token: int) -> None:
        """An attempt with this token is committed."""
        before = self._tokens.get(execution_id, 0)
        if token <= before:
            self.violate("fencing tokens grow", f"{execution_id} got {token} after {before}")
        self._tokens[execution_id] = token

    def changed(self, before: Execution | None, after: Execution) -> None:
        """A change of an execution is about to be committed."""
        name = after.execution_id
        if before is not None and before.state.is_terminal and before != after:
            self.violate("one terminal outcome", f"{name} was {before.state} and becomes {after.state}")
        live = [one for one in after.attempts if one.state.is_live]
        if len(live) > 1 or (live and after.state.is_terminal):
            self.violate("one live attempt", f"{name} has {len(live)} live attempts as {after.state}")
        if before is not None and before.state is not after.state:
            self._trace.note(f"{name[-6:]} {before.state} -> {after.state} {after.reason or ''}", who="db")
        if after.state in _NOT_HONEST:
            self.violate("honest orders are not refused", f"{name} is {after.state} {after.reason}")
        for run in self._guests:
            if run.order.execution_id == name and not self._excused(run.process):
                held = live[0].fencing_token if live else None
                if held != run.order.fencing_token:
                    self.violate(
                        "leases never overlap",
                        f"{name} attempt {run.order.fencing_token} runs on {run.process.name} while its lease"
                        f" has ended ({after.state}, token {after.fencing_token})",
                    )

    def finished(self, answers: Iterator[tuple[Finished, int, bytes, bytes]]) -> None:
        """Receipts were judged: with each answer the receipt's token, its hash and the one before."""
        for answer, token, hash_, previous in answers:
            known = self.stored[answer.node_id].get(answer.sequence)
            if known is not None:
                # The same call again, or the same receipt: it was judged when it came first.
                if answer.disposition.is_recorded and known[0] != hash_:
                    self.violate("receipts never fork", f"{answer.node_id} has two {answer.sequence}")
                continue
            if answer.disposition.is_recorded:
                self.stored[answer.node_id][answer.sequence] = (hash_, previous)
            if answer.disposition is Disposition.ACCEPTED and answer.execution is not None:
                self._accepted(answer, token)

    def _accepted(self, answer: Finished, token: int) -> None:
        execution = answer.execution
        assert execution is not None
        name = execution.execution_id
        if token != self._tokens.get(name):
            self.violate(
                "the highest fencing token decides",
                f"receipt {answer.sequence} of {answer.node_id} with token {token} was accepted for {name},"
                f" committed is {self._tokens.get(name)}",
            )
        if execution.state.is_terminal:
            first = self._deciding.setdefault(name, answer.receipt_id)
            if first != answer.receipt_id:
                self.violate("one terminal outcome", f"{name} was ended by two receipts")

    # --- guests

    def guest_starts(self, order: Order, process: Process) -> GuestRun:
        """A guest is about to run for this order."""
        name = order.execution_id
        self._runs[order.id] += 1
        if self._runs[order.id] > 1:
            self.violate("an order runs once", f"{name} attempt {order.fencing_token} runs again")
        execution = self.executions[name]
        live = execution.live_attempt
        if live is None or live.fencing_token != order.fencing_token:
            self.violate(
                "only the holder of the lease runs",
                f"{name} attempt {order.fencing_token} starts on {process.name}; the execution is"
                f" {execution.state}, newest token {execution.fencing_token}",
            )
        run = GuestRun(order, process)
        self._guests.append(run)
        return run

    def guest_ends(self, run: GuestRun) -> None:
        self._guests.remove(run)

    def runs_a_guest(self, process: Process) -> bool:
        """Whether a guest runs there now."""
        return any(run.process is process for run in self._guests)

    def process_died(self, process: Process) -> None:
        """Its guests died with it."""
        self._guests = [run for run in self._guests if run.process is not process]

    def _excused(self, process: Process) -> bool:
        # Who is stopped cannot stop its guest: it does so as the first thing when it goes on.
        return not process.is_running or process.resumed_at == self._loop.time()

    # --- clients

    def promised(self, request_id: str, execution_id: str) -> None:
        """A client was told that its request is accepted."""
        known = self.acknowledged.setdefault(request_id, execution_id)
        if known != execution_id:
            self.violate("one execution per request", f"{request_id} is {known} and {execution_id}")
        if execution_id not in self.executions:
            self.violate("nothing acknowledged is lost", f"{execution_id} was promised and is not stored")

    def answered(self, request_id: str, execution: Execution) -> None:
        """A client was told how its execution ended."""
        self.promised(request_id, execution.execution_id)
        self.answers[execution.execution_id] = execution
        stored = self.executions[execution.execution_id]
        if (stored.state, stored.reason, stored.receipt_id) != (
            execution.state,
            execution.reason,
            execution.receipt_id,
        ):
            self.violate(
                "callers are told the truth",
                f"{execution.execution_id} is {stored.state}, its caller was told {execution.state}",
            )

    # --- receipts

    def receipt_written(self, node_id: str, sequence: int, hash_: bytes) -> None:
        """A receipt is on the disk for good: it is this one for ever."""
        known = self.written[node_id].setdefault(sequence, hash_)
        if known != hash_:
            self.violate("receipts never fork", f"{node_id} wrote {sequence} twice")

    # --- at the end

    @property
    def is_quiet(self) -> bool:
        """Whether everything has come to its end."""
        return all(one.state.is_terminal for one in self.executions.values()) and all(
            sequence in self.stored[node_id]
            for node_id, receipts in self.written.items()
            for sequence in receipts
        )

    def conclude(self, outputs: dict[str, bytes], contents: Mapping[ExecutionId, bytes | None]) -> None:
        """The world has healed: look at everything once more.

        `outputs` are what guests give for each execution's input, `contents` what the store has.
        """
        for execution in self.executions.values():
            self._conclude_one(execution, outputs, contents)
        for request_id, execution_id in self.acknowledged.items():
            if execution_id not in self.executions:
                self.violate("nothing acknowledged is lost", f"{request_id} was {execution_id}")
        for node_id, receipts in self.written.items():
            missing = [one for one in receipts if one not in self.stored[node_id]]
            if missing:
                self.violate(
                    "every receipt reaches the store", f"{missing[0]} of {node_id} ({len(missing)} in all)"
                )
            self._conclude_chain(node_id)

    def _conclude_one(
        self, execution: Execution, outputs: dict[str, bytes], contents: Mapping[ExecutionId, bytes | None]
    ) -> None:
        name = execution.execution_id
        if not execution.state.is_terminal:
            self.violate("everything ends after healing", f"{name} is {execution.state} still")
        if execution.state is ExecutionState.CANCELLED and name not in self.cancelled:
            self.violate("only the caller cancels", f"{name} is cancelled, nobody asked for it")
        if execution.state is ExecutionState.EXPIRED and name not in self.hurried:
            self.violate("only deadlines expire", f"{name} is expired")
        if execution.state is ExecutionState.LOST and execution.counted_attempts < execution.max_attempts:
            self.violate("attempts are counted", f"{name} is lost after {execution.counted_attempts}")
        if execution.state is ExecutionState.SUCCEEDED and contents.get(name) != outputs.get(name):
            self.violate("results are the guest's", f"{name} has {contents.get(name)!r}")

    def _conclude_chain(self, node_id: str) -> None:
        stored = self.stored[node_id]
        if sorted(stored) != list(range(1, len(stored) + 1)):
            self.violate("receipts are gapless", f"{node_id} has {sorted(stored)}")
            return
        for sequence in range(2, len(stored) + 1):
            if stored[sequence][1] != stored[sequence - 1][0]:
                self.violate("receipts are a chain", f"{sequence} of {node_id} does not continue")

    @property
    def outcomes(self) -> Counter[Outcome | ExecutionState]:
        return Counter(one.state for one in self.executions.values())
