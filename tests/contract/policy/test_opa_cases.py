"""Every case that OPA ships: answered by the embedded engine as OPA does, or refused with a reason; never otherwise."""

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.contract.policy.opa_cases import CASES, Verdict, cases_folder, listed, read_cases, run_case

LIST = Path(__file__).with_name("opa_cases.txt")
REWRITE = "python -m tests.contract.policy.opa_cases > tests/contract/policy/opa_cases.txt"
MIN_SAME = 1_100
LIMIT_SECONDS = 120


@pytest.fixture(scope="module")
def results():
    cases = read_cases(cases_folder())
    started = time.monotonic()
    results = [run_case(case) for case in cases]
    assert time.monotonic() - started < LIMIT_SECONDS
    return results


def test_all_cases_run(results):
    assert len(results) == CASES
    assert sum(result.verdict is Verdict.SAME for result in results) >= MIN_SAME


def test_no_answer_differs_from_opas(results):
    assert [listed(result) for result in results if result.verdict is Verdict.DIFFERS] == []


def test_what_is_refused_is_listed_with_its_reason(results):
    refused = Counter(listed(result) for result in results if result.verdict is not Verdict.SAME)
    known = Counter(LIST.read_text().splitlines())
    assert not refused - known, f"newly refused, or for another reason; if that is right: {REWRITE}"
    assert not known - refused, f"no longer refused; if that is right: {REWRITE}"
