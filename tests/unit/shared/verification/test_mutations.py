"""Whatever byte of a receipt file is another one, it is found."""

from collections.abc import Callable

import pytest

from shared.receipt_file import encode_receipt_file, parse_receipt_file
from shared.verification.checks import verify_receipt_file
from tests.builders.receipt_files import Scene, calling, succeeded, trapped, trust


@pytest.mark.timeout(600)  # 15 s for each file on a core of its own
@pytest.mark.parametrize("make", [succeeded, trapped, calling], ids=lambda make: make.__name__)
def test_every_byte_of_a_receipt_file_counts(make: Callable[[], Scene]) -> None:
    data = encode_receipt_file(make().file())
    trusted = trust(quorum=2 if make is calling else 0)
    assert verify_receipt_file(data, trusted).proved is not None
    unnoticed = []
    for place, byte in enumerate(data):
        mutated = bytearray(data)
        mutated[place] = byte ^ 1
        if verify_receipt_file(bytes(mutated), trusted).failed is None:
            unnoticed.append((place, data[max(0, place - 20) : place + 20]))
    assert unnoticed == []


@pytest.mark.parametrize("make", [succeeded, trapped, calling], ids=lambda make: make.__name__)
def test_a_file_has_one_form(make: Callable[[], Scene]) -> None:
    file = make().file()
    data = encode_receipt_file(file)
    assert parse_receipt_file(data) == file
    assert encode_receipt_file(parse_receipt_file(data)) == data
