"""What is compared of two runs, what never is, and what cannot be replayed at all."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from data_plane.replay.domain import (
    Material,
    PartName,
    Rerun,
    SaltedBody,
    StepResult,
    check_material,
    compare,
    differs,
    require_comparable,
    require_replayable,
)
from data_plane.replay.recording import RecordedCall
from data_plane.sandbox.domain import EngineInfo, RunResult, Trap
from shared.digests import Digest, sha256_digest
from shared.errors import NotReplayableError, PackageAlteredError
from shared.ids import BootId, ExecutionId, NodeId, OrderId
from shared.manifest import Profile
from shared.orders import Order
from shared.outcomes import LimitName, Outcome
from shared.receipts import AttemptIdentity, Denial, EngineIdentity, ReceiptPredicate
from shared.resources import ResourcesUsed
from tests.unit.data_plane.builders import order

NOW = datetime(2026, 1, 2, tzinfo=UTC)
CONFIG = Digest("sha256:" + "1" * 64)
OUTPUT = SaltedBody(content=b"abc", salt=bytes(32))
INPUT = SaltedBody(content=b"in", salt=bytes([1]) * 32)
MATERIAL = Material(
    module=b"module", parameters=b"{}", bodies={PartName.INPUT: INPUT, PartName.OUTPUT: OUTPUT}
)
FETCHED = RecordedCall(
    index=0,
    method="http.fetch",
    request_digest=CONFIG,
    response_digest=CONFIG,
    status="ok",
    is_scrubbed=False,
    response=b"{}",
)


def an_order(**changes: Any) -> Order:
    return replace(
        order(),
        module_digest=sha256_digest(b"module"),
        parameters_digest=sha256_digest(b"{}"),
        input_commitment=INPUT.commitment,
        **{"profile": Profile.PORTABLE, **changes},
    )


def receipt(**changes: Any) -> ReceiptPredicate:
    made = ReceiptPredicate(
        installation="local",
        node_id=NodeId("nod_1"),
        boot_id=BootId("boot_1"),
        sequence=1,
        previous=None,
        order_digest=CONFIG,
        attempt=AttemptIdentity(
            order_id=OrderId("ord_1"), execution_id=ExecutionId("exe_1"), attempt_number=1, fencing_token=1
        ),
        output_commitment=OUTPUT.commitment,
        outcome=Outcome.SUCCEEDED,
        exit_code=0,
        resources=ResourcesUsed(fuel=7),
        engine=EngineIdentity(name="one", version="1", config_digest=CONFIG),
        received_at=NOW,
        started_at=NOW,
        finished_at=NOW,
    )
    return replace(made, **changes)


def rerun(engine: str = "one", **changes: Any) -> Rerun:
    made = RunResult(
        outcome=Outcome.SUCCEEDED,
        exit_code=0,
        stdout=b"abc",
        resources=ResourcesUsed(fuel=7, wall=timedelta(seconds=1)),
        engine=EngineInfo(name=engine, version="1", config_digest=CONFIG, cpu_features=""),
    )
    return Rerun(result=replace(made, **changes), kv_writes_digest=None, calls_asked=0)


def different(made: ReceiptPredicate, again: Rerun) -> list[str]:
    steps = compare(an_order(), made, MATERIAL, again)
    return [step.name for step in steps if step.result is StepResult.DIFFERENT]


def test_the_same_run_is_the_same() -> None:
    steps = compare(an_order(), receipt(), MATERIAL, rerun())
    assert {step.result for step in steps} == {StepResult.SAME}
    assert not differs(steps)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stdout": b"abX"}, "output"),
        ({"stdout": b"abcd"}, "output"),
        ({"stderr": b"x"}, "log"),
        ({"outcome": Outcome.FAILED, "exit_code": 1}, "outcome"),
        ({"resources": ResourcesUsed(fuel=8)}, "fuel"),
    ],
)
def test_each_difference_is_found(changes: dict[str, Any], named: str) -> None:
    assert different(receipt(), rerun(**changes)) == [named]


def test_another_question_to_the_host_and_another_written_key_are_differences() -> None:
    assert different(receipt(), replace(rerun(), mismatch="host call 0")) == ["host calls"]
    assert different(receipt(), replace(rerun(), kv_writes_digest=CONFIG)) == ["kv writes"]


def test_fuel_and_words_of_traps_are_not_compared_across_engines_but_the_trap_is() -> None:
    trapped = receipt(outcome=Outcome.TRAPPED, exit_code=None, trap="Unreachable: the words of one")
    again = rerun("two", outcome=Outcome.TRAPPED, exit_code=None, resources=ResourcesUsed(fuel=0))
    other = replace(again.result, trap=Trap(name="Unreachable", message="of the other"))
    assert different(trapped, replace(again, result=other)) == []
    assert different(
        trapped, replace(again, result=replace(other, trap=Trap(name="Overflow", message="")))
    ) == ["outcome"]


@pytest.mark.parametrize("limit", [LimitName.FUEL, LimitName.STACK_BYTES])
def test_limits_that_engines_count_each_in_their_own_way_are_never_compared_across_them(
    limit: LimitName,
) -> None:
    killed = receipt(outcome=Outcome.KILLED, exit_code=None, limit=limit)
    with pytest.raises(NotReplayableError):
        require_comparable(killed, rerun("two").result.engine)
    require_comparable(killed, rerun().result.engine)
    assert different(receipt(), rerun("two", outcome=Outcome.KILLED, exit_code=None, limit=limit)) == []


@pytest.mark.parametrize("limit", [LimitName.WALL_MS, LimitName.CPU_MS])
def test_time_is_never_compared(limit: LimitName) -> None:
    assert different(receipt(), rerun(outcome=Outcome.KILLED, exit_code=None, limit=limit)) == []
    killed = receipt(outcome=Outcome.KILLED, exit_code=None, limit=limit)
    assert "never compared" in refusal(killed)


def refusal(
    made: ReceiptPredicate,
    *,
    material: Material = MATERIAL,
    imports: frozenset[str] = frozenset(),
    recording: tuple[RecordedCall, ...] = (),
    **changes: Any,
) -> str:
    with pytest.raises(NotReplayableError) as refused:
        require_replayable(an_order(**changes), made, material, imports=imports, recording=recording)
    return str(refused.value)


def test_what_cannot_be_replayed_says_why() -> None:
    erased = replace(MATERIAL, bodies={})
    assert "cancelled" in refusal(receipt(outcome=Outcome.CANCELLED))
    assert "crashed" in refusal(receipt(outcome=Outcome.TRAPPED, trap="worker_crashed: gone"))
    assert "input was erased" in refusal(receipt(), material=erased)
    assert "recording was erased" in refusal(receipt(recording_commitment=CONFIG))
    assert "scrubbed" in refusal(receipt(), recording=(replace(FETCHED, is_scrubbed=True),))
    assert "record_host_calls" in refusal(receipt(), recording=(replace(FETCHED, response=None),))
    full = Denial(method="http.fetch", reason="recording_full")
    assert "was full" in refusal(receipt(denials=(full,)))
    assert "clock_time_get" in refusal(
        receipt(), imports=frozenset({"clock_time_get", "fd_write"}), profile=Profile.DEFAULT
    )


def test_a_run_of_the_default_profile_that_asks_for_neither_clock_nor_chance_can_be_replayed() -> None:
    require_replayable(
        an_order(profile=Profile.DEFAULT),
        receipt(),
        MATERIAL,
        imports=frozenset({"fd_read", "fd_write", "proc_exit"}),
        recording=(FETCHED,),
    )


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        (1, {"module": b"another"}),
        (2, {"parameters": b'{"a":1}'}),
        (3, {"bodies": {PartName.INPUT: SaltedBody(content=b"in", salt=bytes(32))}}),
        (3, {"bodies": {PartName.OUTPUT: SaltedBody(content=b"abX", salt=bytes(32))}}),
        (3, {"bodies": {PartName.LOG: OUTPUT}}),
    ],
)
def test_material_that_is_not_what_was_signed_is_refused(check: int, changes: dict[str, Any]) -> None:
    check_material(an_order(), receipt(), MATERIAL)
    with pytest.raises(PackageAlteredError, match=f"check {check}"):
        check_material(an_order(), receipt(), replace(MATERIAL, **changes))
