"""What a row of the chaos runs says comes from times alone: throughput, latency, and the bars."""

import json
from pathlib import Path

import pytest

from tests.chaos import report
from tests.chaos.facts import Facts
from tests.chaos.judge import Verdict
from tests.chaos.load import SUCCEEDED, Call, Ledger
from tests.chaos.row import Row, Times, fill, p95_ms, recovery

TIMES = Times(loaded_at=0, injected_at=10, lifted_at=20, ended_at=33)
EARLIER = 10.0
NOTHING = Facts(executions=(), attempts=(), receipts=(), spools=())


def ends(*spans: tuple[float, float]) -> list[float]:
    """Ten ends a second in each span."""
    return [start + number / 10 for start, end in spans for number in range(round((end - start) * 10))]


def test_throughput_that_never_fell_has_recovered_at_once() -> None:
    assert recovery(ends((0, 33)), EARLIER, TIMES) == 0.0


def test_throughput_that_came_back_has_recovered_then() -> None:
    assert recovery(ends((0, 10), (24, 33)), EARLIER, TIMES) == pytest.approx(4, abs=0.3)


def test_throughput_that_falls_again_has_not_recovered_before() -> None:
    assert recovery(ends((0, 22), (28, 33)), EARLIER, TIMES) == pytest.approx(8, abs=0.3)


def test_throughput_that_is_low_at_the_end_has_not_recovered() -> None:
    assert recovery(ends((0, 31)), EARLIER, TIMES) is None
    assert recovery([], EARLIER, TIMES) is None


def test_latency_is_of_the_calls_that_were_due_in_the_span() -> None:
    slow_before = [(9.0, 5.0)] * 100
    assert p95_ms(slow_before + [(12.0, 0.02)] * 20, 10, 20) == 20.0
    assert p95_ms(slow_before, 10, 20) is None


def test_every_bar_that_is_missed_is_named() -> None:
    ledger = Ledger(
        calls=[
            Call(request_id="1", waits=True, due_at=16, answered_at=16.2, state=SUCCEEDED),
            Call(request_id="2", waits=True, due_at=16),
        ]
    )
    ledger.refusals["INTERNAL: broken"] += 1
    row = Row(fault="some", says="something")
    verdict = Verdict(acknowledged=5, lost=1, accepted_twice=2, stale_accepted=3, receipts_missing=4)
    fill(row, ledger=ledger, facts=NOTHING, verdict=verdict, times=TIMES, nodes_off=True)
    assert not row.ok
    for words in (
        "lost = 1",
        "twice = 2",
        "stale_accepted = 3",
        "missing = 4",
        "1 calls",
        "INTERNAL",
        "recovery",
    ):
        assert any(words in failure for failure in row.failures), words
    assert any("p95 with a node off is 200.0 ms" in failure for failure in row.failures)


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "RESULT", tmp_path / "chaos.json")
    return tmp_path / "chaos.json"


def test_a_missing_row_fails(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = Row(fault="one", says="the first")
    assert report.publish([row], ["one"]) == 0
    assert report.publish([row], ["one", "two"]) == 1
    assert "two: has no row" in capsys.readouterr().out
    assert [(each["fault"], each["ok"]) for each in json.loads(result.read_text())] == [("one", True)]


def test_a_failed_row_fails(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.publish([Row(fault="one", says="the first", failures=["lost = 1"])], ["one"]) == 1
    assert "one: lost = 1" in capsys.readouterr().out
    assert json.loads(result.read_text())[0]["ok"] is False
