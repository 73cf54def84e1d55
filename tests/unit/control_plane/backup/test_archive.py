"""An archive as a file: what was written comes out, and whatever is changed in it is noticed, byte by byte."""

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest

from control_plane.backup.archive import (
    ArchiveReader,
    ArchiveWriter,
    claimed_header,
    new_header,
    read_envelope,
    verified_header,
)
from control_plane.backup.domain import (
    BACKUP,
    MAGIC,
    MAX_HEADER_BYTES,
    PART_BYTES,
    SEGMENT_BYTES,
    BackupHeader,
    decode_header,
    encode_header,
)
from control_plane.backup.keys import read_create_key, read_restore_key, write_keys
from control_plane.backup.sealing import SealingReader, SealingWriter
from shared.errors import (
    AlreadyExistsError,
    KeyFileModeError,
    KeyFormatError,
    MalformedError,
    SignatureInvalidError,
    UnknownKeyError,
    VerificationError,
)
from shared.ids import InstallationId, new_id
from tests.fakes.clock import START, FakeClock, FakeRandom

HEADER = BackupHeader(
    backup_id=new_id(BACKUP, FakeClock(), FakeRandom()),
    installation=InstallationId("local"),
    epoch=3,
    snapshot_at=START,
    schema="0025",
    postgres=18,
    recipient="sha256:" + "0" * 64,
    wrapped_key="",
)
FILES = {"root.pub": b"a key", "trust.json": b"{}"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    write_keys(folder / "create.key", folder / "restore.key")
    return folder


def written(keys: Path, dump: bytes) -> bytes:
    maker = read_create_key(keys / "create.key")
    below = io.BytesIO()
    writer = ArchiveWriter(below, new=new_header(HEADER, maker, FakeRandom("key")), maker=maker)
    for name, data in FILES.items():
        writer.add_file(name, data)
    assert writer.add_database(io.BytesIO(dump)) == len(dump)
    writer.finish()
    return below.getvalue()


def read(keys: Path, archive: bytes) -> dict[str, bytes]:
    key, below = read_restore_key(keys / "restore.key"), io.BytesIO(archive)
    header = verified_header(read_envelope(below), key)
    return dict(ArchiveReader(below, read=header, key=key).parts())


def test_what_was_written_comes_out_in_parts(keys):
    dump = os.urandom(PART_BYTES + 5)
    archive = written(keys, dump)
    parts = read(keys, archive)
    assert {name.removeprefix("files/"): data for name, data in parts.items() if "files" in name} == FILES
    assert parts["database/00000000"] + parts["database/00000001"] == dump
    assert claimed_header(read_envelope(io.BytesIO(archive))).installation == "local"
    assert b"a key" not in archive


def test_every_changed_byte_is_noticed(keys):
    archive = written(keys, b"rows" * 50)
    for at in range(len(archive)):
        changed = bytearray(archive)
        changed[at] ^= 1 << at % 8
        with pytest.raises(VerificationError):
            read(keys, bytes(changed))


def test_every_cut_is_noticed(keys):
    archive = written(keys, b"rows" * 50)
    for length in range(len(archive)):
        with pytest.raises(VerificationError):
            read(keys, archive[:length])


def test_bytes_behind_the_end_are_noticed(keys):
    with pytest.raises(SignatureInvalidError, match="segment 0"):
        read(keys, written(keys, b"") + b"\0")


def test_the_header_is_bounded_before_it_is_read():
    with pytest.raises(MalformedError, match="at most"):
        read_envelope(io.BytesIO(MAGIC + (MAX_HEADER_BYTES + 1).to_bytes(4, "big")))


def test_another_pair_of_keys_neither_opens_nor_makes(keys, tmp_path):
    write_keys(tmp_path / "create.key", tmp_path / "restore.key")
    with pytest.raises(UnknownKeyError):
        read(tmp_path, written(keys, b""))
    # Whoever knows the public half of the recipient alone forges nothing: the header is signed.
    ours, theirs = read_create_key(keys / "create.key"), read_create_key(tmp_path / "create.key")
    forger = replace(theirs, recipient=ours.recipient)
    below = io.BytesIO()
    ArchiveWriter(below, new=new_header(HEADER, forger, FakeRandom()), maker=forger).finish()
    with pytest.raises(UnknownKeyError):
        read(keys, below.getvalue())


def test_keys_are_not_overwritten_not_mixed_up_and_not_open_to_others(keys, tmp_path):
    with pytest.raises(AlreadyExistsError):
        write_keys(keys / "create.key", keys / "restore.key")
    with pytest.raises(KeyFormatError, match="not the key that opens"):
        read_restore_key(keys / "create.key")
    with pytest.raises(KeyFormatError, match="not the key that makes"):
        read_create_key(keys / "restore.key")
    write_keys(tmp_path / "create.key", tmp_path / "restore.key")
    (tmp_path / "restore.key").chmod(0o640)
    with pytest.raises(KeyFileModeError):
        read_restore_key(tmp_path / "restore.key")
    (tmp_path / "other.key").write_bytes(b"no key")
    (tmp_path / "other.key").chmod(0o600)
    with pytest.raises(KeyFormatError, match="no key of backups"):
        read_create_key(tmp_path / "other.key")


@pytest.mark.parametrize(
    "size", [0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES]
)
def test_segments_end_where_they_must(size):
    below, plain = io.BytesIO(), os.urandom(size)
    with SealingWriter(below, key=b"k" * 32, context=b"c") as writer:
        writer.write(plain)
    sealed = below.getvalue()
    assert SealingReader(io.BytesIO(sealed), key=b"k" * 32, context=b"c").readall() == plain
    assert len(sealed) == size + 16 * max(1, -(-size // SEGMENT_BYTES))
    with pytest.raises(SignatureInvalidError):
        SealingReader(io.BytesIO(sealed), key=b"k" * 32, context=b"other").readall()


def test_segments_cannot_change_places_nor_be_left_out():
    below = io.BytesIO()
    with SealingWriter(below, key=b"k" * 32, context=b"c") as writer:
        writer.write(os.urandom(3 * SEGMENT_BYTES))
    sealed, size = below.getvalue(), SEGMENT_BYTES + 16
    one, two, three = (sealed[at * size : (at + 1) * size] for at in range(3))
    for wrong in (two + one + three, one + three, one + two, one + one + two + three):
        with pytest.raises(SignatureInvalidError, match="segment"):
            SealingReader(io.BytesIO(wrong), key=b"k" * 32, context=b"c").readall()


def test_an_archive_that_breaks_off_is_never_whole(keys):
    maker, below = read_create_key(keys / "create.key"), io.BytesIO()
    writer = ArchiveWriter(below, new=new_header(HEADER, maker, FakeRandom()), maker=maker)
    writer.add_file("root.pub", b"x")
    writer.abort()
    with pytest.raises(VerificationError):
        read(keys, below.getvalue())


def test_headers_are_read_as_they_were_written():
    header = replace(HEADER, wrapped_key="abcd")
    assert decode_header(encode_header(header)) == header
    assert header.name == f"20260101T120000Z-{header.backup_id}.afbackup"
