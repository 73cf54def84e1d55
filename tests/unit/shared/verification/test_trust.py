"""A trust file says whom to trust, and cannot be made to trust more than it says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shared.checkpoints import ED25519
from shared.errors import (
    InvalidInputError,
    MalformedError,
    NotFoundError,
    UnknownFieldError,
)
from shared.verification.trust import encode_receipt_trust, parse_receipt_trust, read_receipt_trust
from tests.builders.receipt_files import trust

WHOLE = trust(quorum=2, minimum_keyset_version=7)


def test_a_trust_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert parse_receipt_trust(encode_receipt_trust(WHOLE)) == WHOLE
    path = tmp_path / "trust.json"
    with pytest.raises(NotFoundError):
        read_receipt_trust(path)
    path.write_bytes(encode_receipt_trust(WHOLE))
    assert read_receipt_trust(path) == WHOLE


def test_one_witness_counts_once_and_a_quorum_is_one_that_can_be_reached() -> None:
    one, two = WHOLE.witnesses
    for wrong in (
        {"witnesses": (one, replace(two, name=one.name))},
        {"witnesses": (one, replace(two, public=one.public))},
        {"witnesses": (one,)},
        {"logs": (one,)},
        {"quorum": 3},
        {"quorum": -1},
        {"root_keys": ()},
        {"minimum_keyset_version": 0},
    ):
        with pytest.raises(InvalidInputError):
            replace(WHOLE, **wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "agentfactory.trust.v1"},
        {"type": "agentfactory.receipt-trust.v2"},
        {"comment": "x"},
        {"root_keys": []},
        {"root_keys": ["no key"]},
        {"logs": ["agentfactory.dev/log/local/1"]},
        {"logs": [WHOLE.witnesses[0].text]},
        {"witnesses": [replace(WHOLE.witnesses[0], kind=ED25519).text], "quorum": 1},
        {"quorum": True},
        {"quorum": "0"},
        {"installation": ""},
    ],
    ids="-".join,
)
def test_whatever_else_it_says_is_refused(change: dict) -> None:
    said = json.loads(encode_receipt_trust(WHOLE))
    with pytest.raises((MalformedError, UnknownFieldError)):
        parse_receipt_trust(json.dumps({**said, **change}).encode())
