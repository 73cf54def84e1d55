"""The committed vectors are those that the tool makes, and each ends at the check that it names."""

import json

import pytest

from shared.verification.checks import NAMES, verify_receipt_file
from shared.verification.report import CheckResult
from shared.verification.trust import parse_receipt_trust
from tests.tools.receipt_vectors import FOLDER, files

LISTED = json.loads((FOLDER / "vectors.json").read_bytes())["vectors"]


def test_the_committed_vectors_are_what_the_tool_makes() -> None:
    made = files()
    assert sorted(made) == sorted(path.name for path in FOLDER.glob("*.json"))
    changed = [name for name, content in made.items() if (FOLDER / name).read_bytes() != content]
    assert changed == [], "run: python -m tests.tools.receipt_vectors"


@pytest.mark.parametrize("vector", LISTED, ids=lambda vector: vector["name"])
def test_a_vector_ends_at_the_check_that_it_names(vector: dict) -> None:
    trust = parse_receipt_trust((FOLDER / vector["trust"]).read_bytes())
    verification = verify_receipt_file((FOLDER / vector["file"]).read_bytes(), trust)
    failed = verification.failed
    assert (failed.name if failed else "") == vector["fails"], failed
    assert [check.name for check in verification.checks] == list(NAMES)
    assert (verification.proved is None) == bool(vector["fails"])
    if failed is not None:
        assert failed.reason
        assert {one.result for one in verification.checks[failed.number :]} <= {CheckResult.NOT_REACHED}


def test_every_check_has_a_vector_that_it_alone_refuses() -> None:
    assert {vector["fails"] for vector in LISTED} == {"", *NAMES}
