"""One admitted order on its way to its receipt: what its guest is given and what is reported of it.

Pure but for the task that it names; `runner.py` carries it out.
"""

import asyncio  # noqa: TC003 - imports stay in one place
import hashlib
import hmac
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

from data_plane.host_calls.domain import NO_CALLS, CallContext
from data_plane.host_calls.service import AttemptCalls
from data_plane.orders.admission import Admission
from data_plane.orders.domain import Delivery, attempt_of
from data_plane.orders.verifier import Check
from data_plane.receipts.issuer import Report, rejection_of
from data_plane.sandbox.domain import RunRequest, RunResult, Trap
from shared.digests import Digest
from shared.errors import InvalidInputError, OrderRejectedError, RejectionReason
from shared.ids import KeyId
from shared.json_bodies import check_body
from shared.limits import Limits
from shared.manifest import Profile
from shared.orders import Order
from shared.outcomes import Outcome
from shared.schemas import JsonSchema
from shared.tracing import UNTRACED, Part, SpanKind, Tracer, Trail

PARAMETERS_VARIABLE: Final = "AGENTFACTORY_PARAMETERS"
"""Where a guest finds its agent's parameters, as canonical JSON."""

OUTPUT_INVALID: Final = "OUTPUT_INVALID"
"""The trap of a guest that ended well with an output that it may not have."""

MAX_OUTPUT_PLACES_BYTES: Final = 4096

_MICROSECOND: Final = timedelta(microseconds=1)
_CALLS_DOMAIN: Final = b"agentfactory-host-calls-v1\0"


class StopReason(Enum):
    """Why a run is stopped from outside."""

    CANCELLED = "cancelled"
    LEASE_LOST = "lease"
    NODE_STOPS = "stop"
    WAITED_TOO_LONG = "waited"
    KEY_REVOKED = "key"


_STOPPED: Final = {
    StopReason.LEASE_LOST: ("the lease ran out; whatever the guest did is void", RejectionReason.STALE),
    StopReason.NODE_STOPS: ("the node stops; whatever the guest did is void", RejectionReason.DRAINING),
    StopReason.KEY_REVOKED: (
        "the key that signed the order was revoked; whatever the guest did is void",
        RejectionReason.STALE,
    ),
    StopReason.WAITED_TOO_LONG: ("other guests keep every slot busy for too long", RejectionReason.BUSY),
}


@dataclass(slots=True, kw_only=True, eq=False)
class Running:
    """One admitted order on its way to its receipt."""

    order: Order
    delivery: Delivery = field(repr=False)
    admission: Admission = field(repr=False)
    order_envelope: bytes = field(repr=False)
    """The signed root that the order came under."""
    order_keys: frozenset[KeyId]
    """The order keys that signed it."""
    order_digest: Digest
    received_at: datetime
    queued_at: float
    """Monotonic second."""
    started_at: datetime | None = None
    stopped: StopReason | None = None
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)
    """The slot that carries it out; None while it waits for one."""
    calls: AttemptCalls | None = field(default=None, repr=False)
    """What its guest asks; None until it starts."""
    vouched_by: str = ""
    """The compiler key on whose word its module is loaded; empty: on this node's own, or not known yet."""
    trail: Trail = field(default=UNTRACED, repr=False)
    is_stoppable: bool = False
    """Whether its slot may be interrupted now."""


def stop_rejection(reason: StopReason) -> OrderRejectedError:
    """Return why a run is void: for a reason of this node alone, so that the execution goes on elsewhere."""
    problem, word = _STOPPED[reason]
    return OrderRejectedError(problem, check=Check.ROOM, rejection=word)


def report_of_run(
    running: Running, outcome: Outcome, *, now: datetime, result: RunResult | None, trap: str | None
) -> Report:
    """Return what is said about a run that ended, or was cancelled."""
    return Report(
        order_digest=running.order_digest,
        order=running.order,
        outcome=outcome,
        received_at=running.received_at,
        started_at=running.started_at,
        # Wall clocks may be set back; a receipt's times never run backwards.
        finished_at=max(now, running.started_at or running.received_at),
        result=result,
        trap=trap,
        order_envelope=running.order_envelope,
        calls=NO_CALLS if running.calls is None else running.calls.conclude(),
    )


def report_of_rejection(running: Running, error: OrderRejectedError, *, now: datetime) -> Report:
    """Return what is said about an order that was refused after it had been believed.

    What its guest had called until then has happened, whatever comes of the run.
    """
    return Report(
        order_digest=running.order_digest,
        order=running.order,
        outcome=Outcome.REJECTED,
        received_at=running.received_at,
        started_at=running.started_at,
        finished_at=max(now, running.started_at or running.received_at),
        rejection=rejection_of(error),
        order_envelope=running.order_envelope,
        calls=NO_CALLS if running.calls is None else running.calls.conclude(),
    )


async def judged(result: RunResult, schema: JsonSchema | None, limits: Limits) -> RunResult:
    """Return a run's result, or a trap in place of a success whose output breaks its template's schema.

    What breaks it goes nowhere: neither the output nor what the guest wrote to its values. Which places are
    wrong is said in the guest's log, which can be erased, and not in the receipt.
    """
    if schema is None or result.outcome is not Outcome.SUCCEEDED:
        return result
    try:
        await check_body(schema, result.stdout, "output")
    except InvalidInputError as error:
        places = "; ".join(f"{one.field}: {one.description}" for one in error.violations) or str(error)
        line = f"agentfactory: {places}\n".encode()[: min(MAX_OUTPUT_PLACES_BYTES, limits.log_bytes)]
        return replace(
            result,
            outcome=Outcome.TRAPPED,
            exit_code=None,
            trap=Trap(name=OUTPUT_INVALID, message="the output does not fit its template's schema"),
            stdout=b"",
            stderr=result.stderr[: limits.log_bytes - len(line)] + line,
        )
    return result


def call_context(running: Running) -> CallContext:
    """Return what decides what the guest of a verified order may call."""
    return call_context_of(running.order, running.admission.limits)


def call_context_of(order: Order, limits: Limits) -> CallContext:
    """Return what decides what a guest may call that runs under these limits."""
    key = hmac.new(order.seed, _CALLS_DOMAIN + order.execution_id.encode(), hashlib.sha256).digest()
    return CallContext(
        attempt=attempt_of(order),
        tenant_id=order.tenant_id,
        capabilities=order.capabilities,
        grants=frozenset(order.host_call_grants),
        limits=limits,
        is_repeatable=order.profile is not Profile.DEFAULT,
        key=key,
    )


def request_of(running: Running, content: bytes) -> RunRequest:
    """Return what the guest of a verified order is given."""
    return guest_request(
        running.order,
        limits=running.admission.limits,
        parameters=running.delivery.parameters,
        content=content,
    )


def guest_request(order: Order, *, limits: Limits, parameters: bytes, content: bytes) -> RunRequest:
    """Return what a guest is given that runs under these limits."""
    # The default profile has real time and real randomness; the others repeat a run exactly.
    # A fuel limit of the default profile is not counted by anything: its engine does not meter.
    repeatable = order.profile is not Profile.DEFAULT
    return RunRequest(
        args=(order.agent_name,),
        env=((PARAMETERS_VARIABLE, parameters.decode()),),
        stdin=content,
        limits=limits,
        profile=order.profile,
        seed=order.seed if repeatable else None,
        clock=order.clock_start_at if repeatable else None,
        scratch=limits.has_scratch,
    )


def begin_trail(tracer: Tracer, order: Order, *, since: float) -> Trail:
    """Begin the trail of an order whose signature holds: before, it has no say in what is kept."""
    trail = tracer.begin("order", order.traceparent, kind=SpanKind.CONSUMER, since=since)
    trail.note(
        order_id=order.id,
        execution_id=order.execution_id,
        attempt_number=order.attempt_number,
        node_id=order.node_id,
    )
    return trail


def end_trail(trail: Trail, report: Report) -> None:
    """The receipt of an order is written: its trail is kept if it says anything but success."""
    if trail is UNTRACED:
        return
    is_good = report.outcome is Outcome.SUCCEEDED
    trail.end(
        failed="" if is_good else report.outcome,
        outcome=report.outcome,
        rejection="" if report.rejection is None else report.rejection.reason,
        limit=(report.result.limit if report.result else None) or "",
    )


def note_guest(part: Part, result: RunResult) -> None:
    """Show what the worker measured of its guest: it has no clock of ours and is told nothing of traces."""
    used = result.resources
    ended = part.trail.now()
    part.trail.part("guest", since=max(part.started, ended - used.wall.total_seconds()), parent=part).end(
        at=ended,
        failed="" if result.outcome is Outcome.SUCCEEDED else result.outcome,
        cpu_us=used.cpu // _MICROSECOND,
        peak_memory_bytes=used.peak_memory_bytes,
        host_calls=used.host_calls,
        fuel=used.fuel,
    )
