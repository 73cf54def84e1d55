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
from tests.builders.roots import handover, with_chain
from tests.fakes.clock import START
from tests.fixtures.keys import ed25519_key, rsa_key, signer
from tests.unit.shared.builders import INSTALLATION, a_keyset, an_entry

ROOT, ORDER_KEY = rsa_key("root"), rsa_key("order")
NEXT_ROOT, THIEF = ed25519_key("root 2"), ed25519_key("thief")


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


async def test_rule_16_a_keyset_of_an_earlier_epoch_is_refused_however_new_it_is(path):
    keyset = holder(path)
    keyset.offer(await envelope(version=4, epoch=2))
    with pytest.raises(RollbackError, match="epoch 1"):
        keyset.offer(await envelope(version=5, epoch=1))
    assert (keyset.version, keyset.epoch) == (4, 2)


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


# --- root N hands over to root N+1


async def test_keyset_by_the_next_root_is_taken_with_its_chain_alone(path):
    keyset = holder(path)
    keyset.offer(await envelope(version=3))
    new = await envelope(root=NEXT_ROOT, version=4)

    with pytest.raises(UnknownKeyError):
        keyset.offer(new)
    assert keyset.offer(with_chain(new, await handover(ROOT, NEXT_ROOT)))
    assert keyset.version == 4


async def test_root_rollback(path):
    keyset = holder(path)
    chain = await handover(ROOT, NEXT_ROOT)
    keyset.offer(with_chain(await envelope(root=NEXT_ROOT, version=4), chain))
    fork = await handover(ROOT, THIEF)

    for held in (keyset, holder(path)):  # now, and after a restart with the first root pinned
        for attack in (
            await envelope(version=9),
            with_chain(await envelope(version=9), chain),
            with_chain(await envelope(root=THIEF, version=9), fork),
            with_chain(await envelope(root=THIEF, version=9), fork, chain),
        ):
            with pytest.raises(VerificationError):
                held.offer(attack)
        assert held.version == 4


async def test_a_new_root_takes_no_version_back(path):
    keyset = holder(path)
    keyset.offer(await envelope(version=3))

    for version in (2, 3):
        with pytest.raises(RollbackError):
            keyset.offer(
                with_chain(await envelope(root=NEXT_ROOT, version=version), await handover(ROOT, NEXT_ROOT))
            )


async def test_a_relay_that_leaves_the_chain_out_does_not_keep_the_node_from_starting_again(path):
    keyset = holder(path)
    keyset.offer(with_chain(await envelope(root=NEXT_ROOT, version=4), await handover(ROOT, NEXT_ROOT)))

    assert keyset.offer(await envelope(root=NEXT_ROOT, version=5))
    assert holder(path).version == 5


async def test_after_the_next_root_is_pinned_what_was_kept_still_counts(path):
    holder(path).offer(with_chain(await envelope(root=NEXT_ROOT, version=4), await handover(ROOT, NEXT_ROOT)))
    keyset = holder(path, root=NEXT_ROOT)

    assert keyset.version == 4
    assert keyset.offer(
        with_chain(
            await envelope(root=THIEF, version=5),
            await handover(ROOT, NEXT_ROOT),
            await handover(NEXT_ROOT, THIEF),
        )
    )
    assert holder(path, root=NEXT_ROOT).version == 5
