"""The judge of the chaos runs is right only if it sees what it is there to see."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.chaos.facts import AttemptFact, ExecutionFact, Facts, ReceiptFact, SpoolFact
from tests.chaos.judge import Verdict, judge
from tests.chaos.load import SUCCEEDED, Call

COUNT = 3


def call(number: int) -> Call:
    return Call(
        request_id=f"request-{number}",
        waits=True,
        due_at=0.0,
        answered_at=1.0,
        execution_ids={f"exe_{number}"},
        receipt_ids={f"rcp_{number}"},
        state=SUCCEEDED,
    )


def execution(number: int) -> ExecutionFact:
    return ExecutionFact(
        execution_id=f"exe_{number}",
        request_id=f"request-{number}",
        state="succeeded",
        fencing_token=10 + number,
        receipt_id=f"rcp_{number}",
        ended_at=datetime(2026, 11, 24, tzinfo=UTC),
    )


def attempt(number: int) -> AttemptFact:
    return AttemptFact(
        execution_id=f"exe_{number}",
        fencing_token=10 + number,
        node_id="nod_a",
        state="finished",
        receipt_id=f"rcp_{number}",
        ended_at=datetime(2026, 11, 24, tzinfo=UTC),
    )


def receipt(number: int) -> ReceiptFact:
    return ReceiptFact(
        receipt_id=f"rcp_{number}",
        node_id="nod_a",
        sequence=number,
        hash=bytes([number]),
        execution_id=f"exe_{number}",
        fencing_token=10 + number,
        accepted=True,
        outcome="succeeded",
        previous=bytes([number - 1]) if number > 1 else None,
    )


NUMBERS = range(1, COUNT + 1)
CALLS = [call(number) for number in NUMBERS]
FACTS = Facts(
    executions=tuple(map(execution, NUMBERS)),
    attempts=tuple(map(attempt, NUMBERS)),
    receipts=tuple(map(receipt, NUMBERS)),
    spools=(SpoolFact(node_id="nod_a", sequence=COUNT, hash=bytes([COUNT])),),
)


def counts(verdict: Verdict) -> tuple[int, int, int, int]:
    return verdict.lost, verdict.accepted_twice, verdict.stale_accepted, verdict.receipts_missing


def test_an_order_without_its_signature_is_named() -> None:
    bare = replace(FACTS.receipts[1], order_is_signed=False)
    verdict = judge(CALLS, replace(FACTS, receipts=(FACTS.receipts[0], bare, FACTS.receipts[2])))
    assert (verdict.orders_unsigned, verdict.is_clean) == (1, False)
    assert "unsigned: the order of receipt rcp_2" in verdict.notes[0]


def test_a_run_in_which_nothing_went_wrong_is_clean() -> None:
    verdict = judge(CALLS, FACTS)
    assert counts(verdict) == (0, 0, 0, 0)
    assert verdict.is_clean
    assert verdict.acknowledged == COUNT


def test_a_call_that_was_never_answered_was_never_promised() -> None:
    unanswered = Call(request_id="request-9", waits=True, due_at=0.0)
    assert judge([*CALLS, unanswered], FACTS).is_clean


LOST: dict[str, Callable[[ExecutionFact], tuple[ExecutionFact, ...]]] = {
    "without a row": lambda _: (),
    "still pending": lambda row: (replace(row, state="pending"),),
    "ended lost": lambda row: (replace(row, state="lost"),),
    "of another request": lambda row: (replace(row, request_id="request-8"),),
    "with another receipt than the caller was told": lambda row: (replace(row, receipt_id="rcp_2"),),
}


@pytest.mark.parametrize("change", LOST.values(), ids=LOST)
def test_an_acknowledged_execution_is_lost(
    change: Callable[[ExecutionFact], tuple[ExecutionFact, ...]],
) -> None:
    changed = change(FACTS.executions[0]) + FACTS.executions[1:]
    assert judge(CALLS, replace(FACTS, executions=changed)).lost == 1


def test_an_answer_that_the_record_contradicts_is_lost() -> None:
    told_failed = replace(CALLS[0], state=SUCCEEDED + 1)
    assert judge([told_failed, *CALLS[1:]], FACTS).lost == 1


def test_two_executions_of_one_request_are_accepted_twice() -> None:
    twin = replace(execution(9), request_id="request-1", receipt_id="rcp_1")
    told = replace(CALLS[0], execution_ids={"exe_1", "exe_9"})
    verdict = judge([told, *CALLS[1:]], replace(FACTS, executions=(*FACTS.executions, twin)))
    assert verdict.accepted_twice == 2  # the caller was told, and the record says so


def test_a_second_accepted_receipt_is_accepted_twice() -> None:
    second = replace(receipt(COUNT + 1), execution_id="exe_1", fencing_token=11)
    facts = replace(
        FACTS,
        receipts=(second, *FACTS.receipts),
        spools=(SpoolFact(node_id="nod_a", sequence=COUNT + 1, hash=second.hash),),
    )
    assert counts(judge(CALLS, facts)) == (0, 2, 0, 0)  # of the execution, and of the attempt


def test_a_refusal_before_the_result_is_no_second_result() -> None:
    refusal = replace(receipt(COUNT + 1), execution_id="exe_1", fencing_token=5, outcome="rejected")
    refused = replace(attempt(COUNT + 1), execution_id="exe_1", fencing_token=5)
    facts = replace(
        FACTS,
        attempts=(refused, *FACTS.attempts),
        receipts=(refusal, *FACTS.receipts),
        spools=(SpoolFact(node_id="nod_a", sequence=COUNT + 1, hash=refusal.hash),),
    )
    assert judge(CALLS, facts).is_clean


def test_late_evidence_is_no_second_result() -> None:
    late = replace(receipt(COUNT + 1), execution_id="exe_1", fencing_token=5, accepted=False)
    facts = replace(
        FACTS,
        receipts=(*FACTS.receipts, late),
        spools=(SpoolFact(node_id="nod_a", sequence=COUNT + 1, hash=late.hash),),
    )
    assert judge(CALLS, facts).is_clean


def test_a_second_finished_attempt_is_accepted_twice() -> None:
    second = replace(attempt(1), fencing_token=99, receipt_id=None)
    assert counts(judge(CALLS, replace(FACTS, attempts=(*FACTS.attempts, second)))) == (0, 1, 0, 0)


def test_a_second_ending_is_accepted_twice() -> None:
    twice = replace(FACTS.executions[0], endings=2)
    assert counts(judge(CALLS, replace(FACTS, executions=(twice, *FACTS.executions[1:])))) == (0, 1, 0, 0)


def test_a_result_of_an_older_attempt_is_stale() -> None:
    newer = replace(FACTS.executions[0], fencing_token=50)
    assert counts(judge(CALLS, replace(FACTS, executions=(newer, *FACTS.executions[1:])))) == (0, 0, 1, 0)


def test_a_result_of_a_node_that_did_not_hold_the_attempt_is_stale() -> None:
    elsewhere = replace(FACTS.attempts[0], node_id="nod_b")
    assert judge(CALLS, replace(FACTS, attempts=(elsewhere, *FACTS.attempts[1:]))).stale_accepted == 1


def test_a_result_of_an_attempt_that_counts_as_lost_is_stale() -> None:
    lost = replace(FACTS.attempts[0], state="lost")
    assert judge(CALLS, replace(FACTS, attempts=(lost, *FACTS.attempts[1:]))).stale_accepted == 1


def test_a_receipt_without_a_row_is_missing() -> None:
    # Its execution, its attempt and its node's spool all know it.
    assert judge(CALLS, replace(FACTS, receipts=FACTS.receipts[1:])).receipts_missing == 3


def test_a_receipt_that_only_the_node_knows_is_missing() -> None:
    ahead = SpoolFact(node_id="nod_a", sequence=COUNT + 2, hash=b"x")
    assert judge(CALLS, replace(FACTS, spools=(ahead,))).receipts_missing == 2


def test_a_receipt_of_another_chain_is_missing() -> None:
    other = SpoolFact(node_id="nod_a", sequence=COUNT, hash=b"other")
    assert judge(CALLS, replace(FACTS, spools=(other,))).receipts_missing == 1


def test_a_receipt_that_follows_another_one_than_on_record_is_missing() -> None:
    torn = replace(FACTS.receipts[1], previous=b"other")
    verdict = judge(CALLS, replace(FACTS, receipts=(FACTS.receipts[0], torn, FACTS.receipts[2])))
    assert verdict.receipts_missing == 1


def test_a_success_whose_receipt_says_something_else_is_stale() -> None:
    failed = replace(FACTS.receipts[0], outcome="failed")
    assert judge(CALLS, replace(FACTS, receipts=(failed, *FACTS.receipts[1:]))).stale_accepted == 1
