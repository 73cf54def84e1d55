"""Rule 5 at the node: what the control plane accepted must be of this node's own chain."""

import pytest

from data_plane.receipts.domain import EMPTY_HEAD, SpoolHead
from data_plane.receipts.ports import ReceiptDraft
from data_plane.session.chain import check_chain
from shared.errors import NodeEvictedError, NodeQuarantinedError
from tests.fakes.spool import FakeSpool


@pytest.fixture
async def spool() -> FakeSpool:
    spool = FakeSpool()
    for text in (b"one", b"two", b"three"):
        await spool.append(ReceiptDraft(build=lambda _head, text=text: text, attempt=None))
    return spool


def accepted(spool: FakeSpool, sequence: int) -> SpoolHead:
    return SpoolHead(sequence=sequence, hash=spool.hashes[sequence])


async def test_nothing_accepted_yet(spool):
    check_chain(spool, EMPTY_HEAD)


@pytest.mark.parametrize("sequence", [1, 2, 3])
async def test_accepted_up_to_here(spool, sequence):
    check_chain(spool, accepted(spool, sequence))


async def test_accepted_and_forgotten_here(spool):
    newest = accepted(spool, 2)
    spool.acknowledge([1, 2])

    check_chain(spool, newest)


async def test_node_behind_what_was_accepted_has_lost_its_spool(spool):
    with pytest.raises(NodeEvictedError):
        check_chain(spool, SpoolHead(sequence=4, hash=b"x" * 32))


@pytest.mark.parametrize("sequence", [1, 3])
async def test_another_receipt_of_the_same_number(spool, sequence):
    with pytest.raises(NodeQuarantinedError):
        check_chain(spool, SpoolHead(sequence=sequence, hash=b"x" * 32))
