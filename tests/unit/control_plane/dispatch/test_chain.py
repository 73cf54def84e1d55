"""Rule 5 within one session: no two receipts for one sequence, no broken chain, any order of arrival."""

import hashlib
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.dispatch.chain import ReceiptChain
from shared.errors import ReceiptConflictError


def links(count: int) -> list[tuple[int, bytes, bytes]]:
    made, previous = [], b""
    for sequence in range(1, count + 1):
        hash_ = hashlib.sha256(b"%d" % sequence + previous).digest()
        made.append((sequence, hash_, previous))
        previous = hash_
    return made


def add(chain: ReceiptChain, link: tuple[int, bytes, bytes]) -> None:
    chain.add(sequence=link[0], hash_=link[1], previous=link[2])


def _add_all(chain: ReceiptChain, all_links: list[tuple[int, bytes, bytes]]) -> None:
    for link in all_links:
        add(chain, link)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_receipts_may_come_in_any_order_and_twice(order: tuple[int, ...]):
    chain, made = ReceiptChain(), links(4)
    for position in (*order, *order):
        add(chain, made[position])


def test_two_receipts_for_one_sequence():
    chain, made = ReceiptChain(), links(1)
    add(chain, made[0])
    with pytest.raises(ReceiptConflictError, match="check 1"):
        add(chain, (1, b"z" * 32, b""))


@given(st.integers(0, 4), st.permutations(range(5)))
def test_a_receipt_with_another_predecessor_is_found_whatever_comes_first(bad: int, order: list[int]):
    made = links(5)
    if bad == 0:
        made[0] = (1, b"f" * 32, b"")  # the second one names another first
    else:
        made[bad] = (made[bad][0], made[bad][1], b"f" * 32)
    chain = ReceiptChain()
    with pytest.raises(ReceiptConflictError, match=r"check [23]"):
        _add_all(chain, [made[position] for position in order])


def test_the_first_receipt_of_a_session_continues_the_accepted_one():
    chain, made = ReceiptChain(), links(3)
    chain.start(sequence=2, hash_=made[1][1])
    with pytest.raises(ReceiptConflictError, match="check 2"):
        add(chain, (3, b"z" * 32, b"y" * 32))
    add(chain, made[2])


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("control_plane.dispatch.chain.MAX_REMEMBERED_RECEIPTS", 2)
    chain = ReceiptChain()
    for link in links(4):
        add(chain, link)
    assert len(chain._links) == 2
