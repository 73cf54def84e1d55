"""What noting and keeping traces costs by itself: processor time of what one execution has a process note.

`python -m tests.bench.trace_notes` makes the calls of control plane and node in their order, with the code that
makes them there, and nothing else: without tracing, with none kept, and with all kept and sent to a receiver in a
process of its own. What a tenth costs is computed of these. `python -m tests.bench.tracing` measures whole
processes, whose moods are larger than this; it says what share of an execution it is.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Final

from prometheus_client import CollectorRegistry

from control_plane.dispatch.trails import AttemptTrails
from control_plane.executions.domain import Claimable, Disposition, ExecutionState, NewExecution
from control_plane.executions.lifecycle import Execution, Finished
from control_plane.executions.trails import ExecutionTrails
from control_plane.policy.domain import Subject
from data_plane.attempt import begin_trail, end_trail, note_guest
from data_plane.metrics import Stage
from data_plane.receipts.issuer import Report
from data_plane.sandbox.domain import RunResult
from shared.clock import SystemClock, SystemRandom
from shared.ids import ORDER, new_id
from shared.outcomes import Outcome
from shared.resources import ResourcesUsed
from shared.telemetry import sampled_trace_id
from shared.trace_setup import TraceOptions, tracing
from shared.tracing import Tracer
from tests.bench.report import Figure, measured, median, publish
from tests.builders.executions import Builder
from tests.fixtures.dispatch import session
from tests.fixtures.otlp import collecting
from tests.unit.data_plane.builders import ENGINE
from tests.unit.shared.builders import an_order

ROUNDS: Final = 7
GROUPS: Final = 200
"""Of one round."""
TOGETHER: Final = 8
"""Executions whose orders are signed, and whose receipts are recorded, together."""
RATIO: Final = 0.1
OFF, NONE, ALL = "not traced", "none kept", "all kept"
PARENTS: Final = {
    name: f"00-{'a' * 32}-{'b' * 16}-{'01' if name == ALL else '00'}" for name in (OFF, NONE, ALL)
}
RECEIVE: Final = "--receive"
BOUND_SECONDS: Final = 30

Work = Callable[[Tracer, str], None]
"""Notes a group of executions below a traceparent."""


class ControlPlane:
    """The calls that a control plane makes."""

    def __init__(self) -> None:
        made = Builder()
        self._clock = made.clock
        self._session = session()
        self._subject = Subject(
            identity="caller", tenant_id=made.execution().run.tenant_id, roles=frozenset()
        )
        self._items = [made.execution() for _ in range(TOGETHER)]
        self._works = [item.claimable() for item in self._items]
        self._placements = [made.placement(work) for work in self._works]
        self._results = [made.result(placement) for placement in self._placements]
        self._ended = [_succeeded(item) for item in self._items]
        self._finished = [
            Finished(
                receipt_id=result.receipt_id,
                node_id=result.node_id,
                sequence=result.sequence,
                disposition=Disposition.ACCEPTED,
                execution=None,
            )
            for result in self._results
        ]
        self._order_id = new_id(ORDER, made.clock, made.random)
        self._trails: tuple[ExecutionTrails, AttemptTrails] | None = None

    def _below(self, parent: str) -> list[Claimable]:
        if self._works[0].run.traceparent != parent:
            self._works = [replace(one, run=replace(one.run, traceparent=parent)) for one in self._works]
        return self._works

    def note(self, tracer: Tracer, parent: str) -> None:
        """Make the calls for one group."""
        if self._trails is None or self._tracer is not tracer:
            self._tracer = tracer
            self._trails = ExecutionTrails(tracer), AttemptTrails(tracer)
        executions, attempts = self._trails
        for item in self._items:
            execution_id = item.run.execution_id
            executions.begin(execution_id, self._subject, agent="noop", method="Execute", incoming=parent)
            executions.of(execution_id).part("decide").end(decision_id=item.run.decision_id)
            travelling = executions.of(execution_id).traceparent
            commit = executions.of(execution_id).part("commit")
            sampled_trace_id(travelling)
            commit.end(outcome="new", placed=False)
        for work in self._below(parent):
            attempts.begin(work, self._session, self._order_id)
        signing = attempts.signing([(one.run.execution_id, one.fencing_token) for one in self._works])
        signing.note(batch_id="batch", orders=TOGETHER)
        now = self._clock.monotonic()
        signing.end()
        attempts.claimed(self._placements, now)
        for placement in self._placements:
            attempts.sent(placement, signing_from=now, signing_to=now)
        for result in self._results:
            trail = attempts.of(result.execution_id, result.fencing_token)
            trail.part("node", since=now).end()
            _ = trail.sampled_id
        together = attempts.recording(self._results)
        together.end(receipts=TOGETHER)
        attempts.recorded(self._results, self._finished, now)
        for ended in self._ended:
            _ = executions.of(ended.execution_id).sampled_id
            executions.ended(ended.execution_id, ended)


def _succeeded(item: NewExecution) -> Execution:
    run = item.run
    return Execution(
        execution_id=run.execution_id,
        tenant_id=run.tenant_id,
        agent_id=run.agent_id,
        agent_name=run.agent_name,
        template_digest=run.template_digest,
        caller=run.caller,
        decision_id=run.decision_id,
        media_type=run.media_type,
        input_body_id=run.input.body_id,
        input_commitment=run.input.commitment,
        input_bytes=run.input.size_bytes,
        run_deadline_at=run.run_deadline_at,
        retry_is_safe=run.retry_is_safe,
        max_attempts=item.max_attempts,
        created_at=item.created_at,
        state=ExecutionState.SUCCEEDED,
    )


class Node:
    """The calls that a node makes."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._order = an_order()
        self._result = RunResult(
            outcome=Outcome.SUCCEEDED,
            exit_code=0,
            resources=ResourcesUsed(wall=timedelta(milliseconds=1), cpu=timedelta(milliseconds=1)),
            engine=ENGINE,
        )
        now = self._clock.now()
        self._report = Report(
            order_digest=self._order.module_digest,
            order=self._order,
            outcome=Outcome.SUCCEEDED,
            received_at=now,
            finished_at=now,
            result=self._result,
        )

    def note(self, tracer: Tracer, parent: str) -> None:
        """Make the calls for one group."""
        order = self._order if self._order.traceparent == parent else replace(self._order, traceparent=parent)
        self._order = order
        for _ in range(TOGETHER):
            since = self._clock.monotonic()
            trail = begin_trail(tracer, order, since=since)
            trail.part("verify", since=since).end(at=since)
            trail.part("queue", since=since).end()
            for stage in (Stage.ARTIFACT, Stage.INPUT):
                part = trail.part(stage)
                _ = trail.sampled_id
                part.end()
            part = trail.part(Stage.RUN)
            _ = trail.sampled_id
            note_guest(part, self._result)
            part.end()
            trail.part("receipt").end()
            end_trail(trail, self._report)


@asynccontextmanager
async def receiver() -> AsyncIterator[str]:
    """Run a receiver of spans in a process of its own; yields where it listens."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.trace_notes", RECEIVE,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield (await asyncio.wait_for(child.stdout.readline(), BOUND_SECONDS)).decode().strip()
    finally:
        child.stdin.close()
        await asyncio.wait_for(child.wait(), BOUND_SECONDS)


async def receive() -> int:
    """Take spans until standard input ends."""
    async with collecting() as collector:
        sys.stdout.write(collector.endpoint + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
    return 0


async def measure(rounds: int, groups: int) -> list[Figure]:
    """Return what an execution costs each process, none kept and all, in turns."""
    works: dict[str, Work] = {"control plane": ControlPlane().note, "node": Node().note}
    found: dict[tuple[str, str], list[float]] = {}
    async with receiver() as endpoint:
        for _ in range(rounds):
            for process, work in works.items():
                for name in (OFF, NONE, ALL):
                    cost = await one_round(None if name == OFF else endpoint, work, PARENTS[name], groups)
                    found.setdefault((process, name), []).append(cost)
    figures = []
    for process in works:
        off, none, every = (found[process, name] for name in (OFF, NONE, ALL))
        figures += [
            measured(f"{process}: an execution, {NONE}", none, "µs", beside=(OFF, off)),
            measured(f"{process}: an execution, {ALL}", every, "µs", beside=(OFF, off)),
            Figure(
                figure=f"{process}: what is added to an execution at 10 %",
                value=median(none) - median(off) + RATIO * (median(every) - median(none)),
                unit="µs",
                repeats=rounds,
            ),
        ]
    return figures


async def one_round(endpoint: str | None, work: Work, parent: str, groups: int) -> float:
    """Return the processor time of one execution in µs, all threads together, the sending included."""
    registry = CollectorRegistry()
    options = TraceOptions(endpoint=endpoint, authority=None, ratio=0, max_per_second=10_000_000)
    async with tracing(
        options, service="bench", instance="1", registry=registry, clock=SystemClock(), random=SystemRandom()
    ) as tracer:
        before = _cpu_us()
        for _ in range(groups):
            work(tracer, parent)
            await asyncio.sleep(
                0.004 if parent.endswith("1") else 0
            )  # as fast as they leave, or some are dropped
    assert not registry.get_sample_value("af_trace_spans_total", {"result": "dropped"}), (
        "a round was too fast"
    )
    return (_cpu_us() - before) / (groups * TOGETHER)


def _cpu_us() -> float:
    return time.process_time() * 1e6


def main() -> int:
    """Measure and report."""
    if RECEIVE in sys.argv[1:]:
        return asyncio.run(receive())
    parser = argparse.ArgumentParser(prog="python -m tests.bench.trace_notes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="(default: %(default)s)")
    parser.add_argument(
        "--groups", type=int, default=GROUPS, help="of eight executions (default: %(default)s)"
    )
    asked = parser.parse_args()
    return publish("trace_notes", asyncio.run(measure(asked.rounds, asked.groups)))


if __name__ == "__main__":
    sys.exit(main())
