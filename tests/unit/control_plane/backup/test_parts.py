"""The small parts of backups: rows of a dump, a growing tree, retention, folders, URLs, epochs."""

import io
import random
from dataclasses import replace
from datetime import timedelta

import pytest

from control_plane.backup.copy_text import binary, rows
from control_plane.backup.directory import DirectoryPlace
from control_plane.backup.domain import Stored, surplus
from control_plane.backup.epochs import next_epoch, require_next_epoch
from control_plane.backup.postgres_tools import Login, find_tools
from control_plane.backup.tree import GrowingTree
from shared.errors import (
    AlreadyExistsError,
    InvalidInputError,
    MalformedError,
    NotFoundError,
    RollbackError,
    SettingsError,
    UnavailableError,
)
from shared.keyset import KeyPurpose, Keyset, KeysetEntry
from shared.keyset_changes import revoke_key
from shared.merkle import leaf_hash, root_hash
from shared.tiles import grown
from tests.fakes.clock import START
from tests.fixtures.keys import ed25519_key, rsa_key

NAME = "20260101T120000Z-bak_0190f5ac-0000-7000-8000-00000000000{}.afbackup"


def test_rows_are_read_as_copy_writes_them():
    text = (
        b"SET x = 1;\nCOPY public.keysets (version, envelope) FROM stdin;\n1\t\\\\x6162\n2\t\\N\n\\.\n"
        b'COPY public.other ("a") FROM stdin;\nCOPY public.keysets (version) FROM stdin;\n\\.\n'
        b"COPY public.audit_entries (details, recorded_at) FROM stdin;\n"
        b'{"a": "x\\\\ny\\tz\\\\\\\\"}\t2026\n\\.\n'
    )
    found = list(rows(io.BytesIO(text), frozenset({"keysets", "audit_entries"})))
    assert found == [
        ("keysets", {"version": b"1", "envelope": b"\\x6162"}),
        ("keysets", {"version": b"2", "envelope": None}),
        ("audit_entries", {"details": b'{"a": "x\\ny\tz\\\\"}', "recorded_at": b"2026"}),
    ]
    assert binary(found[0][1]["envelope"]) == b"ab"


@pytest.mark.parametrize("text", [b"1\t2", b"1\t2\n", b"1\n\\.\n", b"1\t2\t3\n\\.\n"])
def test_a_dump_that_breaks_off_or_has_other_columns_is_refused(text):
    block = b"COPY public.keysets (version, envelope) FROM stdin;\n" + text
    with pytest.raises(MalformedError):
        list(rows(io.BytesIO(block), frozenset({"keysets"})))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 255, 256, 257, 700, 65536 + 300])
def test_the_growing_tree_is_the_log_s(size):
    leaves = [number.to_bytes(4, "big") for number in range(size)]
    wanted = {1, 2, 100, 256, 300} & set(range(size + 1))
    tree = GrowingTree(wanted)
    for leaf in leaves:
        tree.add(leaf)
    hashes = [leaf_hash(leaf) for leaf in leaves]
    assert (tree.size, tree.root) == (size, root_hash(hashes))
    assert {at: tree.roots[at] for at in wanted} == {at: root_hash(hashes[:at]) for at in wanted}
    expected = {tile: data for tile, data in grown({}, 0, hashes).items() if tile.level}
    assert tree.tiles() == expected


def test_the_newest_are_kept():
    stored = [Stored(name=NAME.format(number), size_bytes=1) for number in range(5)]
    shuffled = random.Random(1).sample(stored, 5)
    assert surplus(shuffled, 2) == stored[:3]
    assert surplus(shuffled, 9) == []
    with pytest.raises(InvalidInputError):
        surplus(shuffled, 0)


def break_off(place: DirectoryPlace, name: str) -> None:
    with place.writing(name) as file:
        file.write(b"half")
        raise UnavailableError("the dump broke off")


def test_a_folder_has_an_archive_whole_or_not_at_all(tmp_path):
    place, name = DirectoryPlace(tmp_path / "backups"), NAME.format(1)
    assert list(place.all()) == []
    with pytest.raises(UnavailableError):
        break_off(place, name)
    assert list((tmp_path / "backups").iterdir()) == []
    with place.writing(name) as file:
        file.write(b"whole")
    (tmp_path / "backups" / "notes.txt").write_text("not an archive")
    assert list(place.all()) == [Stored(name=name, size_bytes=5)]
    assert (tmp_path / "backups" / name).stat().st_mode & 0o777 == 0o600
    with place.reading(name) as file:
        assert file.read() == b"whole"
    with pytest.raises(AlreadyExistsError), place.writing(name) as file:
        file.write(b"again")
    place.remove(name)
    place.remove(name)
    with pytest.raises(NotFoundError), place.reading(name):
        pass
    for wrong in ("../x", "/etc/passwd", "x.afbackup", NAME.format(1) + "/.."):
        with pytest.raises(InvalidInputError), place.reading(wrong):
            pass


def test_a_url_becomes_an_environment_and_no_argument():
    login = Login.of("postgresql://owner:s%40cret@/db?host=a:5432&host=b:5433&target_session_attrs=primary")
    assert login.variables == {
        "PGUSER": "owner",
        "PGPASSWORD": "s@cret",
        "PGDATABASE": "db",
        "PGHOST": "a,b",
        "PGPORT": "5432,5433",
        "PGTARGETSESSIONATTRS": "primary",
    }
    assert "s@cret" not in repr(login)
    assert Login.of("postgresql://o@/db?host=/run/x").variables["PGHOST"] == "/run/x"
    with pytest.raises(SettingsError):
        Login.of("postgresql://o@/db?options=-c")


def test_missing_programs_are_said_with_what_to_install(tmp_path):
    with pytest.raises(UnavailableError, match="PostgreSQL 18"):
        find_tools([tmp_path], 18)


def keyset(version: int = 7, epoch: int = 2) -> Keyset:
    entry = KeysetEntry(
        purpose=KeyPurpose.ORDER,
        key=rsa_key().public,
        not_before=START,
        not_after=START + timedelta(days=1),
    )
    return Keyset(
        version=version,
        installation="local",
        epoch=epoch,
        root_key_id=ed25519_key().public.key_id,
        issued_at=START,
        entries=(entry,),
    )


def test_rule_16_the_next_epoch_is_behind_every_one_that_is_known():
    newest = keyset()
    assert next_epoch(newest, epoch=1, now=START).epoch == 3
    following = next_epoch(newest, epoch=5, now=START)
    assert (following.epoch, following.version, following.entries) == (6, 8, newest.entries)
    require_next_epoch(newest, following, epoch=5)
    for wrong in (replace(following, epoch=5), replace(following, version=9), replace(following, version=7)):
        with pytest.raises(RollbackError):
            require_next_epoch(newest, wrong, epoch=5)
    revoked = revoke_key(rsa_key().public.key_id, at=START)(newest)
    with pytest.raises(InvalidInputError, match="not taken back"):
        require_next_epoch(revoked, following, epoch=5)
