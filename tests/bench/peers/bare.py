"""One process of Agent Factory without policy and receipts: `python -m tests.bench.peers.bare PLANE [ARGUMENT …]`.

Exists to measure what both cost, and only here: no setting of the product leads to it. It puts other parts in place
of the product's before its composition root runs, and refuses to start when one of them is no longer there.

Off in the control plane: the policy (every question is allowed, nothing is evaluated) and the verification of
receipts. Off in the node: signing them, their statement and its canonical form, and the sync of the spool. What stays
is what carries a result: the report itself, its row, and everything about orders.
"""

import os
import pickle
import sys
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from cli.stack.children import ChildSpec
from control_plane.policy.domain import Decision, PolicyInput, Question
from shared.clock import SystemClock, SystemRandom
from shared.digests import sha256_digest
from shared.ids import DECISION, new_id
from shared.limits import DEFAULT_LIMITS
from shared.receipt_codec import VerifiedReceipt
from shared.receipts import ReceiptPredicate, receipt_hash

PLANES = ("control_plane", "data_plane")
SAID = "bench: policy and receipts are off"
"""In the log of each process as soon as its parts are in use."""


def bare_spec(spec: ChildSpec) -> ChildSpec:
    """Return the same start of a process, by way of this module; other processes stay as they are."""
    python, *rest = spec.arguments
    if rest[:1] != ["-m"] or rest[1] not in PLANES:
        return spec
    return replace(spec, arguments=[python, "-m", __name__, *rest[1:]])


class EverythingAllowed:
    """A policy that is not asked."""

    def __init__(self) -> None:
        self.policy_digest = sha256_digest(b"")
        self._clock, self._random = SystemClock(), SystemRandom()
        self._decided_at = datetime.now(UTC)

    async def decide(self, question: Question, asked: PolicyInput) -> Decision:
        return Decision(
            decision_id=new_id(DECISION, self._clock, self._random),
            tenant_id=asked.subject.tenant_id,
            question=question,
            allowed=True,
            reason="ALLOWED",
            input=b"{}",
            policy_digest=self.policy_digest,
            limits=DEFAULT_LIMITS,
            decided_at=self._decided_at,
        )


def believed(envelope: bytes, **_checked_elsewhere: object) -> VerifiedReceipt:
    """Return a report as it was sent."""
    predicate: ReceiptPredicate = pickle.loads(envelope)
    return VerifiedReceipt(predicate=predicate, hash=receipt_hash(envelope), envelope=envelope)


def put(place: Any, name: str, value: object) -> None:
    """Replace what a module uses under a name; without it this bench would silently measure nothing."""
    if not hasattr(place, name):
        raise AttributeError(f"{place.__name__} has no {name}: the bench without receipts must be adapted")
    setattr(place, name, value)


def bare_control_plane() -> None:
    def policy(*_built: object) -> EverythingAllowed:
        sys.stderr.write(f"{SAID}\n")
        return EverythingAllowed()

    put(import_module("control_plane.wiring.services"), "build_policy", policy)
    put(import_module("control_plane.dispatch.receipts"), "verify_receipt", believed)


def bare_node() -> None:
    main = import_module("data_plane.main")
    issuer: Any = main.ReceiptIssuer

    class Unsigned(issuer):  # type: ignore[misc]
        def __init__(self, **parts: object) -> None:
            super().__init__(**parts)
            sys.stderr.write(f"{SAID}\n")

        def _sign(self, predicate: ReceiptPredicate) -> bytes:
            return pickle.dumps(predicate)

    put(issuer, "_sign", issuer._sign)
    put(main, "ReceiptIssuer", Unsigned)
    put(os, "fdatasync", lambda _descriptor: None)


def main() -> int:
    plane, *arguments = sys.argv[1:]
    {"control_plane": bare_control_plane, "data_plane": bare_node}[plane]()
    code: int = import_module(f"{plane}.__main__").main(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
