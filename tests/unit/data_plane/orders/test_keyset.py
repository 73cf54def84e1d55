"""The node's keyset: verified under the pinned root, kept across restarts, never older than the newest seen."""

import errno
from dataclasses import replace
from datetime import timedelta

import pytest

from data_plane.orders.keyset import NodeKeyset
from shared.errors import (
    KeyRevokedError,
    RollbackError,
    UnavailableError,
    UnknownKeyError,
    VerificationError,
)
from shared.ids import InstallationId
from shared.keyset import KeyPurpose, sign_keyset
from tests.fakes.clock import START
from tests.fixtures.keys import rsa_key, signer
from tests.unit.shared.builders import INSTALLATION, a_keyset, an_entry

ROOT, ORDER_KEY = rsa_key("root"), rsa_key("order")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keyset.dsse"


def holder(path, root=ROOT):
    keyset = NodeKeyset(
        root_keys={root.key_id: root.public}, installation=InstallationId(INSTALLATION), path=path
    )
    keyset.load()
    return keyset


async def envelope(*entries, root=ROOT, **changes) -> bytes:
    return await sign_keyset(a_keyset(root, *entries, **changes), [signer(root)])


async def test_without_a_keyset_no_key_counts(path):
    keyset = holder(path)

    assert keyset.keys_for(KeyPurpose.ORDER, START) == {}
    with pytest.raises(UnknownKeyError):
        keyset.require(KeyPurpose.ORDER, ORDER_KEY.key_id, START)


async def test_newer_keyset_is_in_force(path):
    keyset = holder(path)

    assert keyset.offer(await envelope(version=3))
    assert keyset.version == 3
    assert set(keyset.keys_for(KeyPurpose.ORDER, START)) == {ORDER_KEY.key_id}


async def test_keyset_rollback(path):
    keyset = holder(path)
    keyset.offer(await envelope(version=3))

    with pytest.raises(RollbackError):
        keyset.offer(await envelope(version=2))
    assert keyset.version == 3


async def test_keyset_rollback_after_a_restart(path):
    holder(path).offer(await envelope(version=3))

    with pytest.raises(RollbackError):
        holder(path).offer(await envelope(version=2))


async def test_second_keyset_of_one_version(path):
    keyset = holder(path)
    keyset.offer(await envelope(version=3))
    other = await envelope(an_entry(key=rsa_key("stranger").public), version=3)

    with pytest.raises(RollbackError):
        keyset.offer(other)


async def test_same_keyset_again_changes_nothing(path):
    keyset = holder(path)
    keyset.offer(await envelope(version=3))

    assert not keyset.offer(await envelope(version=3))


@pytest.mark.parametrize("changes", [{"root": rsa_key("stranger")}, {"installation": "elsewhere"}])
async def test_keyset_that_the_pinned_root_did_not_sign_for_here(path, changes):
    keyset = holder(path)

    with pytest.raises(VerificationError):
        keyset.offer(await envelope(**changes))
    assert keyset.version == 0


async def test_altered_file_stops_the_start(path):
    holder(path).offer(await envelope())
    path.write_bytes(path.read_bytes().replace(b"A", b"B", 1))

    with pytest.raises(VerificationError):
        holder(path)


async def test_revoked_key(path):
    keyset = holder(path)
    revoked = replace(an_entry(), revoked_at=START + timedelta(hours=1))
    keyset.offer(await envelope(revoked))

    assert keyset.keys_for(KeyPurpose.ORDER, START)
    assert keyset.keys_for(KeyPurpose.ORDER, START + timedelta(hours=1)) == {}
    with pytest.raises(KeyRevokedError):
        keyset.require(KeyPurpose.ORDER, ORDER_KEY.key_id, START + timedelta(hours=1))


async def test_keyset_that_a_full_disk_cannot_keep_is_not_in_force(path, monkeypatch):
    keyset, newer = holder(path), await envelope(version=3)

    def full(*_args):
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("data_plane.orders.keyset.replace_file", full)
        with pytest.raises(UnavailableError, match="keyset 3"):
            keyset.offer(newer)
    assert keyset.version == 0

    assert keyset.offer(newer)
