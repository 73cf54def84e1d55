"""Defects planted on purpose, to see that the simulation finds them. Substituted here, never switched in the product."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from agentfactory.v1 import nodes_pb2

from control_plane.dispatch.dispatcher import Dispatcher
from control_plane.dispatch.receipts import ReceiptIntake
from control_plane.dispatch.returned import ReturnedSignatures
from control_plane.executions.lifecycle import Execution
from data_plane.orders.ledger import OrderLedger
from data_plane.receipts.body_files import BodyFiles
from data_plane.receipts.segments import SegmentStore
from data_plane.session.leases import Leases
from data_plane.session.outbox import Outbox

Mutation = tuple[type, str, Callable[..., Any]]

_finish = Execution.finish
_recover = SegmentStore._recover
_granted = Leases.granted
_session_ended = Dispatcher.session_ended
_record = ReceiptIntake._record


def _acceptance_ignores_the_token(self: Any, result: Any, *, now: Any) -> Any:
    return _finish(self, replace(result, fencing_token=self.fencing_token), now=now)


def _the_ledger_forgets(self: Any, order: Any, *, now: Any) -> Any:
    return None


def _the_spool_drops_its_newest(self: Any) -> Any:
    recovered = _recover(self)
    return replace(recovered, entries=recovered.entries[:-1])


def _leases_last_twice_as_long(self: Any, number: Any, attempts: Any, *, lease: Any) -> Any:
    return _granted(self, number, attempts, lease=2 * lease)


def _what_left_is_taken_back(self: Any, session: Any) -> Any:
    _session_ended(self, session)
    orders = self._leases._database.executions._placements.values()
    held = {attempt.key for attempt in session.held()}
    self._take_back([one for one in orders if (one.execution_id, one.fencing_token) in held])


async def _acknowledged_before_it_is_stored(self: Any, session: Any, results: Any, *rest: Any) -> Any:
    sequences = [one.sequence for one in results]
    session.send(nodes_pb2.SessionResponse(receipt_ack=nodes_pb2.ReceiptAck(sequences=sequences)))
    await _record(self, session, results, *rest)


async def _returned_signatures_are_not_looked_at(
    self: Any, results: Any, returned: Any, *, node_id: Any
) -> Any:
    return results


def _a_new_stream_begins_with_nothing(self: Any) -> Any:
    self._sent.clear()
    self.changed.set()


def _dropped_bodies_leave_no_mark(self: Any, names: Any) -> Any:
    for name in names:
        (self._folder / name).unlink(missing_ok=True)
        self.used_bytes -= self._sizes.pop(name, 0)


MUTATIONS: dict[str, Mutation] = {
    "acceptance ignores the fencing token": (Execution, "finish", _acceptance_ignores_the_token),
    "the ledger forgets what it has seen": (OrderLedger, "accept", _the_ledger_forgets),
    "the spool drops a receipt at restart": (SegmentStore, "_recover", _the_spool_drops_its_newest),
    "a node counts its leases twice as long": (Leases, "granted", _leases_last_twice_as_long),
    "orders that left are taken back": (Dispatcher, "session_ended", _what_left_is_taken_back),
    "receipts are acknowledged before they are stored": (
        ReceiptIntake,
        "_record",
        _acknowledged_before_it_is_stored,
    ),
    "signatures that nodes return are not looked at": (
        ReturnedSignatures,
        "add_to",
        _returned_signatures_are_not_looked_at,
    ),
    "dropped bodies leave no mark": (BodyFiles, "drop", _dropped_bodies_leave_no_mark),
    "a new stream begins with nothing to send": (Outbox, "restart", _a_new_stream_begins_with_nothing),
}


SLOW_TO_FIND = {
    "a node counts its leases twice as long",
    "orders that left are taken back",
    "receipts are acknowledged before they are stored",
}
"""Left out of the short form."""


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Have a defect for the length of the block; without a name have none."""
    if name is None:
        yield
        return
    owner, attribute, wrong = MUTATIONS[name]
    with patch.object(owner, attribute, wrong):
        yield
