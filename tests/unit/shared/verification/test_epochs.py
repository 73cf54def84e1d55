"""Receipts from before a restore: the log of a later epoch proves them, if the root key has begun that epoch."""

from dataclasses import replace

import pytest

from shared.checkpoints import log_origin
from shared.receipt_file import encode_receipt_file
from shared.verification.checks import verify_receipt_file
from tests.builders.receipt_files import INSTALLATION, succeeded, trust


@pytest.mark.parametrize(
    ("keyset_epoch", "log_epoch", "failed"),
    [(1, 1, None), (2, 2, None), (2, 1, None), (1, 2, "UNKNOWN_KEY"), (2, 3, "UNKNOWN_KEY")],
)
def test_rule_16_a_receipt_is_proved_by_the_log_of_its_epoch_or_a_later_one(
    keyset_epoch: int, log_epoch: int, failed: str | None
) -> None:
    scene = succeeded()
    scene.keyset = replace(scene.keyset, epoch=keyset_epoch)
    scene.origin = log_origin(INSTALLATION, log_epoch)
    report = verify_receipt_file(encode_receipt_file(scene.file()), trust(logs=()))
    assert (report.failed and report.failed.reason) == failed
