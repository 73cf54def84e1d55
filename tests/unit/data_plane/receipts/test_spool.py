"""The spool on a real folder: order, durability, room, and what a crash leaves behind."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_plane.orders.domain import AttemptRef
from data_plane.receipts import segments
from data_plane.receipts import spool as spool_module
from data_plane.receipts.domain import EMPTY_HEAD, Body, SpooledReceipt
from data_plane.receipts.ports import ReceiptDraft
from data_plane.receipts.records import (
    MAX_RECORD_BYTES,
    SEGMENT_HEADER_BYTES,
    decode_record,
    encode_record,
)
from data_plane.receipts.spool import HEADROOM_BYTES, Spool
from shared.errors import (
    DiskFullError,
    InternalError,
    NotFoundError,
    SpoolCorruptError,
    SpoolFullError,
    SpoolLockedError,
)
from shared.gathering import Gathering
from shared.ids import ExecutionId

MIB = 1024 * 1024
SMALL_SEGMENT = SEGMENT_HEADER_BYTES + MAX_RECORD_BYTES
WIDE = b"w" * 130_000
"""With it and a text of 60,000 characters three records fill a small segment."""
ATTEMPT = AttemptRef(execution_id=ExecutionId("exe_1"), attempt_number=1, fencing_token=2**60)
SALT = bytes(range(32))


def open_spool(folder: Path, **changes) -> Spool:
    return Spool.open(folder, **{"bound_bytes": 64 * MIB, "segment_bytes": SMALL_SEGMENT} | changes)


def draft(
    text: str = "", *, output: bytes | None = None, log: bytes | None = None, writes: bytes = b""
) -> ReceiptDraft:
    return ReceiptDraft(
        build=lambda head: f"{head.sequence + 1}:{head.hash.hex()}:{text}".encode(),
        attempt=ATTEMPT,
        output=None if output is None else Body.of(output, SALT),
        log=None if log is None else Body.of(log, SALT),
        kv_writes=writes,
    )


def sync_calls(monkeypatch) -> list[int]:
    calls: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(segments.os, "fdatasync", lambda fd: (calls.append(fd), real(fd))[1])
    return calls


async def test_receipts_are_numbered_and_chained_without_a_gap(tmp_path):
    spool = open_spool(tmp_path)

    receipts = [await spool.append(draft()) for _ in range(3)]

    assert [receipt.sequence for receipt in receipts] == [1, 2, 3]
    assert receipts[0].envelope == b"1::"
    for before, after in pairwise(receipts):
        assert hashlib.sha256(before.envelope).hexdigest().encode() in after.envelope
    assert spool.head.hash == hashlib.sha256(receipts[-1].envelope).digest()
    await spool.close()


async def test_receipt_is_written_whatever_becomes_of_its_caller(tmp_path):
    spool = open_spool(tmp_path)
    callers = [asyncio.create_task(spool.append(draft(str(number)))) for number in range(3)]
    await asyncio.sleep(0)  # the first is being written, the others wait for their group
    callers[0].cancel()
    callers[1].cancel()

    assert (await callers[2]).sequence == 3
    assert [(await spool.read(number)).envelope[-1:] for number in (1, 2)] == [b"0", b"1"]
    assert callers[0].cancelled()
    assert callers[1].cancelled()
    await spool.close()


async def test_chain_goes_on_after_a_restart(tmp_path):
    spool = open_spool(tmp_path)
    first = await spool.append(draft("a", output=b"out", log=b"log"))
    await spool.close()

    again = open_spool(tmp_path)

    assert await again.read(1) == first
    assert again.unacknowledged() == [1]
    assert (await again.append(draft())).sequence == 2
    await again.close()


async def test_receipt_still_has_the_signature_of_its_order_after_a_restart(tmp_path):
    first = open_spool(tmp_path)
    appended = await first.append(replace(draft(), order_envelope=b"signed root"))
    await first.close()

    second = open_spool(tmp_path)
    assert await second.read(1) == appended
    assert appended.order_envelope == b"signed root"
    await second.close()


def test_record_of_a_build_that_kept_no_signature_of_the_order_is_read():
    receipt = SpooledReceipt(sequence=1, envelope=b"receipt", attempt=None)
    today = encode_record(receipt)
    head, payload = today[:16], today[32:].replace(b',"order_envelope":false', b"")
    meta = payload.index(b"}") + 1 - 4
    payload = meta.to_bytes(4, "big") + payload[4:]
    head = head[:4] + len(payload).to_bytes(4, "big") + head[8:]
    before = head + hashlib.sha256(head + payload).digest()[:16] + payload
    assert decode_record(before, sequence=1) == receipt


async def test_head_survives_when_everything_is_acknowledged(tmp_path):
    spool = open_spool(tmp_path)
    for number in range(5):
        await spool.append(draft("x" * 60_000 + str(number)))
    head = spool.head
    spool.acknowledge([1, 2, 3, 4, 5])
    await spool.close()

    again = open_spool(tmp_path)

    assert again.head == head
    await again.close()


async def test_acknowledged_segments_are_removed(tmp_path):
    spool = open_spool(tmp_path)
    for _ in range(12):
        await spool.append(draft("x" * 60_000))
    before = spool.used_bytes
    spool.acknowledge(range(1, 13))
    await spool.append(draft())

    assert spool.unacknowledged() == [13]
    assert spool.used_bytes < before
    assert len(list(tmp_path.glob("*.segment"))) == 1
    with pytest.raises(NotFoundError):
        await spool.read(1)
    await spool.close()


async def test_receipts_acknowledged_out_of_order_leave_the_others(tmp_path):
    spool = open_spool(tmp_path)
    kept = [await spool.append(draft("x" * 60_000)) for _ in range(9)]
    spool.acknowledge([4, 5, 6, 9])
    await spool.close()

    again = open_spool(tmp_path)

    assert set(again.unacknowledged()) >= {1, 2, 3, 7, 8}
    assert await again.read(2) == kept[1]
    assert again.head.sequence == 9
    await again.close()


async def test_second_process_is_kept_out(tmp_path):
    spool = open_spool(tmp_path)

    with pytest.raises(SpoolLockedError):
        open_spool(tmp_path)
    await spool.close()
    await open_spool(tmp_path).close()


async def test_lone_receipt_is_written_at_once(tmp_path, monkeypatch):
    spool = open_spool(tmp_path)
    calls = sync_calls(monkeypatch)

    await spool.append(draft())

    assert len(calls) == 1
    await spool.close()


async def test_receipts_that_come_together_share_the_disk(tmp_path, monkeypatch):
    spool = open_spool(tmp_path, segment_bytes=2 * MIB)
    calls = sync_calls(monkeypatch)

    receipts = await asyncio.gather(*(spool.append(draft(str(n))) for n in range(200)))

    assert [receipt.sequence for receipt in receipts] == list(range(1, 201))
    assert len(calls) <= 3
    await spool.close()


async def test_nothing_is_promised_before_it_is_on_the_disk(tmp_path, monkeypatch):
    spool = open_spool(tmp_path)
    synced: list[bool] = []
    real = os.fdatasync
    monkeypatch.setattr(segments.os, "fdatasync", lambda fd: (real(fd), synced.append(True))[0])

    appending = asyncio.ensure_future(spool.append(draft()))
    while not appending.done():
        assert spool.head == EMPTY_HEAD or synced
        await asyncio.sleep(0)

    assert synced == [True]
    await spool.close()


async def test_large_output_is_a_file_of_its_own_until_it_is_acknowledged(tmp_path):
    spool = open_spool(tmp_path)
    content = os.urandom(200_000)

    receipt = await spool.append(draft(output=content, log=b"small"))

    (body,) = receipt.uploads
    assert body.inline is None
    assert await spool.read_body(body) == content
    assert receipt.log.inline == b"small"
    spool.acknowledge([1])
    await spool.append(draft())
    with pytest.raises(NotFoundError):
        await spool.read_body(body)
    await spool.close()


async def test_large_output_survives_a_restart(tmp_path):
    spool = open_spool(tmp_path)
    content = os.urandom(200_000)
    await spool.append(draft(output=content))
    await spool.close()

    again = open_spool(tmp_path)

    (body,) = (await again.read(1)).uploads
    assert await again.read_body(body) == content
    await again.close()


@pytest.mark.parametrize("emptied", [True, False])
async def test_restart_after_a_large_output_was_acknowledged(tmp_path, emptied):
    spool = open_spool(tmp_path)
    await spool.append(draft("a", output=b"x" * 70_000))
    other = await spool.append(draft("b", output=b"y" * 70_000, log=b"z" * 80_000))
    head, before = spool.head, spool.used_bytes
    spool.acknowledge([1])
    await spool.close()
    (mark,) = (path for path in (tmp_path / "bodies").iterdir() if path.suffix)
    assert mark.stat().st_size == 0
    if not emptied:  # killed between marking and giving the room back
        mark.write_bytes(b"x" * 70_000)

    again = open_spool(tmp_path)

    assert (again.head, again.unacknowledged(), again.used_bytes) == (head, [2], before - 70_000)
    assert await again.read(2) == other
    assert mark.stat().st_size == 0
    again.acknowledge([2])
    for _ in range(4):  # into a segment of its own: the first one goes with its marks
        await again.append(draft("c" * 60_000, output=b"o" * 60_000, log=b"l" * 60_000))
    again.acknowledge([3, 4, 5])
    await again.close()
    assert not list((tmp_path / "bodies").iterdir())


async def test_receipt_whose_output_is_gone_is_no_receipt(tmp_path):
    spool = open_spool(tmp_path)
    await spool.append(draft(output=os.urandom(200_000)))
    await spool.close()
    next((tmp_path / "bodies").iterdir()).unlink()

    with pytest.raises(SpoolCorruptError):
        open_spool(tmp_path)


async def test_draft_that_cannot_be_built_takes_no_number(tmp_path):
    spool = open_spool(tmp_path)

    def broken(_head) -> bytes:
        raise ValueError("no")

    good, bad, more = await asyncio.gather(
        spool.append(draft()),
        spool.append(ReceiptDraft(build=broken, attempt=None)),
        spool.append(draft()),
        return_exceptions=True,
    )

    assert isinstance(bad, InternalError)
    assert [good.sequence, more.sequence] == [1, 2]
    await spool.close()


async def test_order_is_refused_when_the_spool_has_no_room_for_its_receipt(tmp_path):
    spool = open_spool(tmp_path, bound_bytes=4 * MIB)

    with pytest.raises(SpoolFullError):
        spool.reserve(2 * MIB)
    await spool.close()


async def test_room_that_is_given_back_can_be_taken_again(tmp_path):
    spool = open_spool(tmp_path, bound_bytes=HEADROOM_BYTES + 2 * SMALL_SEGMENT + 1_300_000)
    held = [spool.reserve(600_000)]
    with pytest.raises(SpoolFullError):
        held.append(spool.reserve(1_200_000))

    held[0].release()
    held[0].release()

    spool.reserve(1_200_000).release()
    await spool.close()


async def test_rejections_have_room_when_orders_have_none(tmp_path):
    spool = open_spool(tmp_path, bound_bytes=HEADROOM_BYTES + 2 * SMALL_SEGMENT + 1_700_000)
    spool.reserve(1_600_000)
    with pytest.raises(SpoolFullError):
        spool.reserve(1)

    assert (await spool.append(draft())).sequence == 1
    await spool.close()


async def test_flood_of_rejections_never_takes_the_room_of_an_order_that_runs(tmp_path):
    spool = open_spool(tmp_path, bound_bytes=8 * MIB)
    held = spool.reserve(2 * MIB)
    flood = await asyncio.gather(
        *(spool.append(draft("e" * 60_000)) for _ in range(200)), return_exceptions=True
    )
    assert isinstance(flood[-1], SpoolFullError)

    flooded = spool.head.sequence
    answer = replace(draft("answer", output=b"o" * 2 * MIB), reservation=held)

    assert flooded > 1
    assert (await spool.append(answer)).sequence == flooded + 1
    held.release()
    assert spool.used_bytes <= 8 * MIB
    await spool.close()


async def test_full_disk_is_seen_before_an_order_is_taken(tmp_path, monkeypatch):
    spool = open_spool(tmp_path)
    monkeypatch.setattr(segments.SegmentStore, "free_bytes", lambda self: spool_module.MIN_FREE_BYTES)

    with pytest.raises(SpoolFullError):
        spool.reserve(1)
    await spool.close()


async def test_full_disk_takes_no_number_and_the_spool_goes_on(tmp_path, monkeypatch):
    spool = open_spool(tmp_path)
    for _ in range(3):
        await spool.append(draft("x" * 60_000, writes=WIDE))
    real = segments.write_all

    def full(*_args, **_kwargs):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(segments, "write_all", full)
    with pytest.raises(DiskFullError):
        await spool.append(draft("x" * 60_000, writes=WIDE))
    monkeypatch.setattr(segments, "write_all", real)

    assert (await spool.append(draft("x" * 60_000, writes=WIDE))).sequence == 4
    await spool.close()


async def test_disk_that_fails_ends_the_spool(tmp_path, monkeypatch):
    spool = open_spool(tmp_path)
    await spool.append(draft())

    def broken(_fd):
        raise OSError(5, "input/output error")

    monkeypatch.setattr(segments.os, "fdatasync", broken)
    with pytest.raises(SpoolCorruptError):
        await spool.append(draft())
    monkeypatch.undo()

    with pytest.raises(SpoolCorruptError):
        await spool.append(draft())
    with pytest.raises(SpoolFullError):
        spool.reserve(1)
    assert spool.head.sequence == 1
    await spool.close()


async def test_torn_tail_is_cut_off(tmp_path, caplog):
    spool = open_spool(tmp_path)
    await spool.append(draft("kept"))
    await spool.append(draft("torn"))
    await spool.close()
    (segment,) = tmp_path.glob("*.segment")
    data = bytearray(segment.read_bytes())
    data[data.index(b"torn")] ^= 1
    segment.write_bytes(data)

    again = open_spool(tmp_path)

    assert again.unacknowledged() == [1]
    assert "a torn write" in caplog.text
    assert (await again.append(draft("new"))).sequence == 2
    await again.close()
    final = open_spool(tmp_path)
    assert (await final.read(2)).envelope.endswith(b"new")
    await final.close()


async def test_damage_before_the_tail_ends_the_identity(tmp_path):
    spool = open_spool(tmp_path)
    for _ in range(9):
        await spool.append(draft("x" * 60_000, writes=WIDE))
    await spool.close()
    first = min(tmp_path.glob("*.segment"))
    data = bytearray(first.read_bytes())
    data[70_000] ^= 1
    first.write_bytes(data)

    with pytest.raises(SpoolCorruptError):
        open_spool(tmp_path)


async def test_segment_of_another_chain_ends_the_identity(tmp_path):
    for name in ("ours", "theirs"):
        spool = open_spool(tmp_path / name)
        for _ in range(6):
            await spool.append(draft(name + "x" * 60_000, writes=WIDE))
        await spool.close()
    theirs = max((tmp_path / "theirs").glob("*.segment"))
    (tmp_path / "ours" / theirs.name).write_bytes(theirs.read_bytes())

    with pytest.raises(SpoolCorruptError):
        open_spool(tmp_path / "ours")


_WRITER = """
import asyncio, sys
from pathlib import Path
from tests.unit.data_plane.receipts.test_spool import draft, open_spool

async def main():
    spool = open_spool(Path(sys.argv[1]))
    while True:
        receipts = await asyncio.gather(*(spool.append(draft("y" * 500)) for _ in range(7)))
        print(receipts[-1].sequence, flush=True)

asyncio.run(main())
"""


async def test_kill_9_loses_nothing_that_was_promised(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    promised = 0
    while promised < 700:
        promised = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest = writer.communicate(timeout=30)[0].split()
    promised = int(rest[-1]) if rest else promised

    spool = open_spool(tmp_path)

    assert spool.head.sequence >= promised
    assert spool.unacknowledged() == list(range(1, spool.head.sequence + 1))
    previous = b""
    for sequence in spool.unacknowledged():
        envelope = (await spool.read(sequence)).envelope
        assert envelope.startswith(f"{sequence}:{previous.hex()}:".encode())
        previous = hashlib.sha256(envelope).digest()
    await spool.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_cut_or_changed_anywhere_gives_a_shorter_chain_or_a_refusal(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("spool")

    async def write() -> list[bytes]:
        spool = open_spool(folder)
        envelopes = [(await spool.append(draft("z" * 50, output=b"o"))).envelope for _ in range(4)]
        await spool.close()
        return envelopes

    envelopes = asyncio.run(write())
    (segment,) = folder.glob("*.segment")
    content = bytearray(segment.read_bytes())
    position = data.draw(st.integers(0, 2000))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    segment.write_bytes(content)

    async def read() -> None:
        spool = open_spool(folder)
        found = [(await spool.read(sequence)).envelope for sequence in spool.unacknowledged()]
        assert found == envelopes[: len(found)]
        assert (await spool.append(draft())).sequence == len(found) + 1
        await spool.close()

    try:
        asyncio.run(read())
    except SpoolCorruptError:
        assert position < SEGMENT_HEADER_BYTES


async def test_receipts_of_a_crowd_share_one_write(tmp_path, monkeypatch):
    idle = []
    spool = open_spool(tmp_path, gathering=Gathering(idle=idle.append, linger=60.0))
    groups, real = [], spool._store.append
    monkeypatch.setattr(
        spool._store, "append", lambda drafts, **named: (groups.append(len(drafts)), real(drafts, **named))[1]
    )
    appending = asyncio.gather(*(spool.append(draft(f"receipt {number}")) for number in range(3)))
    await asyncio.sleep(0)
    assert groups == []
    idle.pop()()
    await appending
    assert groups == [3]
    await spool.close()


async def test_receipt_that_nobody_joins_is_written_after_the_linger_and_before_the_end(tmp_path):
    spool = open_spool(tmp_path, gathering=Gathering(idle=lambda _: None, linger=0.001))
    assert (await spool.append(draft("alone"))).sequence == 1
    await spool.close()
