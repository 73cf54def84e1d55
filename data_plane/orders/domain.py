"""What came with an order, and which attempt it is about. No I/O, no clock, no randomness."""

from dataclasses import dataclass, field

from shared.ids import ExecutionId
from shared.orders import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRef:
    """One attempt of one execution; what a lease, a cancel and a receipt are about."""

    execution_id: ExecutionId
    attempt_number: int
    fencing_token: int


def attempt_of(order: Order) -> AttemptRef:
    """Return the attempt that a verified order authorises."""
    return AttemptRef(
        execution_id=order.execution_id,
        attempt_number=order.attempt_number,
        fencing_token=order.fencing_token,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBody:
    """The input as it came beside its order; not signed itself, the order's commitment covers it."""

    salt: bytes = field(repr=False)
    size_bytes: int
    inline: bytes | None = field(repr=False)
    """None: it has to be fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One order as it arrived, with its proof and what travels beside it. Nothing in it is verified."""

    order: bytes = field(repr=False)
    index: int
    path: tuple[bytes, ...] = field(repr=False)
    input: InputBody
    parameters: bytes = field(repr=False)
