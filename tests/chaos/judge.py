"""Says what a fault has cost: compares what callers were told with what is on record. Reads nothing itself.

1. Lost: an acknowledged execution that is not on record, has not ended, or has not succeeded; an answer that the
   record contradicts.
2. Accepted twice: two executions of one request; two accepted results, attempts with a result, or endings of one
   execution; two accepted receipts of one attempt. (A refusal is accepted too, and another attempt may follow it.)
3. Stale: a result of another attempt than the newest one, or of a node that did not hold it.
4. Missing: a receipt that a node, an execution, an attempt or the next receipt names and the table does not hold.
5. Unsigned: a receipt whose order has no signature on record, so that nobody could prove who allowed it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.facts import ENDED_STATES, ExecutionFact, Facts, ReceiptFact, SpoolFact
from tests.chaos.load import SUCCEEDED, Call

MAX_NOTES = 12
RESULTS = frozenset({"succeeded", "failed", "trapped", "killed"})


@dataclass(slots=True, kw_only=True)
class Verdict:
    """How many of each, and the first few by name."""

    acknowledged: int
    lost: int = 0
    accepted_twice: int = 0
    stale_accepted: int = 0
    receipts_missing: int = 0
    orders_unsigned: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (
            self.lost
            or self.accepted_twice
            or self.stale_accepted
            or self.receipts_missing
            or self.orders_unsigned
        )

    def note(self, text: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes.append(text)


def judge(calls: Sequence[Call], facts: Facts) -> Verdict:
    """Return the verdict on one run."""
    acknowledged = [call for call in calls if call.is_acknowledged]
    verdict = Verdict(acknowledged=len(acknowledged))
    _find_lost(verdict, acknowledged, facts)
    _find_doubles(verdict, acknowledged, facts)
    _find_stale(verdict, facts)
    _find_missing(verdict, facts)
    _find_unsigned(verdict, facts)
    return verdict


def _find_lost(verdict: Verdict, acknowledged: Iterable[Call], facts: Facts) -> None:
    known = {execution.execution_id: execution for execution in facts.executions}
    for call in acknowledged:
        for execution_id in call.execution_ids:
            reason = _why_lost(call, known.get(execution_id))
            if reason:
                verdict.lost += 1
                verdict.note(f"lost: {execution_id} {reason}")


def _why_lost(call: Call, execution: ExecutionFact | None) -> str:
    if execution is None:
        return "was acknowledged and is not on record"
    checks = (
        (execution.request_id == call.request_id, f"is on record for request {execution.request_id}"),
        (execution.state in ENDED_STATES, f"is still {execution.state}"),
        (execution.state == "succeeded", f"ended {execution.state}"),
        (
            not call.waits or call.answered_at is None or call.state == SUCCEEDED,
            f"succeeded on record, its caller was told state {call.state}",
        ),
        (
            call.receipt_ids <= {execution.receipt_id},
            f"has receipt {execution.receipt_id}, its caller was told {sorted(call.receipt_ids)}",
        ),
    )
    return next((reason for holds, reason in checks if not holds), "")


def _find_doubles(verdict: Verdict, acknowledged: Iterable[Call], facts: Facts) -> None:
    for call in acknowledged:
        if len(call.execution_ids) > 1:
            verdict.accepted_twice += 1
            verdict.note(f"twice: request {call.request_id} became {sorted(call.execution_ids)}")
    requests = Counter(execution.request_id for execution in facts.executions)
    accepted = [receipt for receipt in facts.receipts if receipt.accepted]
    results = Counter(receipt.execution_id for receipt in accepted if receipt.outcome in RESULTS)
    answers = Counter(f"{receipt.execution_id}/{receipt.fencing_token}" for receipt in accepted)
    refused = {receipt.receipt_id for receipt in accepted if receipt.outcome not in RESULTS}
    finished = Counter(
        attempt.execution_id
        for attempt in facts.attempts
        if attempt.state == "finished" and attempt.receipt_id not in refused
    )
    endings = Counter({execution.execution_id: execution.endings for execution in facts.executions})
    for what, counts in (
        ("executions of one request", requests),
        ("accepted results", results),
        ("accepted receipts of one attempt", answers),
        ("attempts with a result", finished),
        ("endings", endings),
    ):
        for name, count in counts.items():
            if count > 1:
                verdict.accepted_twice += 1
                verdict.note(f"twice: {name} has {count} {what}")


def _find_stale(verdict: Verdict, facts: Facts) -> None:
    """Compare the receipt that decided each execution with its newest attempt."""
    attempts = {(each.execution_id, each.fencing_token): each for each in facts.attempts}
    accepted = {receipt.receipt_id: receipt for receipt in facts.receipts if receipt.accepted}
    for execution in facts.executions:
        if execution.state != "succeeded":
            continue
        receipt = accepted.get(execution.receipt_id or "")
        if receipt is None:
            continue  # it is counted as missing
        attempt = attempts.get((execution.execution_id, receipt.fencing_token))
        newest = receipt.fencing_token == execution.fencing_token and receipt.outcome == execution.state
        if not newest or attempt is None or attempt.node_id != receipt.node_id or attempt.state != "finished":
            verdict.stale_accepted += 1
            verdict.note(
                f"stale: {execution.execution_id} has token {execution.fencing_token}, "
                f"its result is of {receipt.fencing_token} from {receipt.node_id}"
            )


def _find_missing(verdict: Verdict, facts: Facts) -> None:
    held = {receipt.receipt_id for receipt in facts.receipts if receipt.accepted}
    every = {receipt.receipt_id for receipt in facts.receipts}
    for execution in facts.executions:
        if execution.state == "succeeded" and execution.receipt_id not in held:
            verdict.receipts_missing += 1
            verdict.note(f"missing: receipt {execution.receipt_id} that decided {execution.execution_id}")
    for attempt in facts.attempts:
        if attempt.receipt_id is not None and attempt.receipt_id not in every:
            verdict.receipts_missing += 1
            verdict.note(f"missing: receipt {attempt.receipt_id} of an attempt of {attempt.execution_id}")
    by_node: dict[str, dict[int, ReceiptFact]] = defaultdict(dict)
    for receipt in facts.receipts:
        by_node[receipt.node_id][receipt.sequence] = receipt
    for spool in facts.spools:
        _find_gaps(verdict, spool, by_node[spool.node_id])


def _find_unsigned(verdict: Verdict, facts: Facts) -> None:
    for receipt in facts.receipts:
        if not receipt.order_is_signed:
            verdict.orders_unsigned += 1
            verdict.note(
                f"unsigned: the order of receipt {receipt.receipt_id} from {receipt.node_id} ({receipt.outcome})"
            )


def _find_gaps(verdict: Verdict, spool: SpoolFact, table: dict[int, ReceiptFact]) -> None:
    """Follow the chain of one node from its first receipt to the newest on its disk."""
    gone = [number for number in range(1, spool.sequence + 1) if number not in table]
    if gone:
        verdict.receipts_missing += len(gone)
        verdict.note(f"missing: {len(gone)} receipts of {spool.node_id}, the first is {gone[0]}")
    elif spool.sequence and table[spool.sequence].hash != spool.hash:
        verdict.receipts_missing += 1
        verdict.note(f"missing: receipt {spool.sequence} of {spool.node_id} is another one on record")
    for number in range(2, spool.sequence + 1):
        if number in table and number - 1 in table and table[number].previous != table[number - 1].hash:
            verdict.receipts_missing += 1
            verdict.note(f"missing: receipt {number} of {spool.node_id} follows another one than on record")
