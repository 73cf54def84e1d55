"""What receipts look like on the way: the signatures of their orders travel once each."""

from data_plane.receipts.domain import SpooledReceipt
from data_plane.session.convert import receipts_to_proto


def receipt(sequence: int, order_envelope: bytes = b"") -> SpooledReceipt:
    return SpooledReceipt(sequence=sequence, envelope=b"receipt", attempt=None, order_envelope=order_envelope)


def test_receipts_name_the_envelope_of_their_order():
    batch = receipts_to_proto(
        [receipt(1, b"a"), receipt(2), receipt(3, b"b"), receipt(4, b"a")]
    ).receipt_batch

    assert list(batch.order_envelopes) == [b"a", b"b"]
    assert [one.order_envelope for one in batch.receipts] == [1, 0, 2, 1]
