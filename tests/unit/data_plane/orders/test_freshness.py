"""Statements of freshness at the node: forged, foreign, replayed, held back, and what time does to them."""

from datetime import timedelta

import pytest

from data_plane.orders.freshness import Freshness
from data_plane.orders.keyset import NodeKeyset
from shared.dsse import KEYSET_TYPE, sign_envelope
from shared.errors import (
    MalformedError,
    OrderRejectedError,
    PayloadTypeError,
    RejectionReason,
    RollbackError,
    SignatureInvalidError,
    UnknownKeyError,
    UnsupportedVersionError,
    VerificationError,
)
from shared.freshness import FRESHNESS_TYPE, FreshnessStatement, sign_statement
from shared.ids import InstallationId
from shared.keyset import KeyPurpose, sign_keyset
from tests.fakes.clock import START, FakeClock
from tests.fixtures.keys import ed25519_key, rsa_key, signer
from tests.unit.shared.builders import INSTALLATION, a_keyset, an_entry

ROOT, ORDER, FRESH = rsa_key("root"), rsa_key("order"), ed25519_key("freshness")
MAX = timedelta(seconds=60)
TICK = timedelta(milliseconds=1)


def entries(**freshness):
    began = {"not_before": START - MAX} | freshness
    return (an_entry(), an_entry(purpose=KeyPurpose.FRESHNESS, key=FRESH.public, **began))


class Node:
    def __init__(self, tmp_path):
        self.clock = FakeClock()
        self.keyset = NodeKeyset(
            root_keys={ROOT.key_id: ROOT.public},
            installation=InstallationId(INSTALLATION),
            path=tmp_path / "keyset.dsse",
        )
        self.freshness = Freshness(
            keyset=self.keyset,
            installation=InstallationId(INSTALLATION),
            max_staleness=MAX,
            max_skew=timedelta(seconds=30),
            clock=self.clock,
        )

    async def knows(self, *listed, version=1):
        self.keyset.offer(await sign_keyset(a_keyset(ROOT, *listed, version=version), [signer(ROOT)]))

    async def hears(self, *, version=1, ago=timedelta(0), installation=INSTALLATION, key=FRESH):
        return self.freshness.take(
            await statement(self.clock.now() - ago, version=version, installation=installation, key=key)
        )


async def statement(issued_at, *, version=1, installation=INSTALLATION, key=FRESH) -> bytes:
    made = FreshnessStatement(
        installation=InstallationId(installation), keyset_version=version, issued_at=issued_at
    )
    return await sign_statement(made, signer(key))


@pytest.fixture
async def node(tmp_path):
    node = Node(tmp_path)
    await node.knows(*entries())
    return node


async def test_without_a_freshness_key_nothing_is_asked_for(tmp_path):
    node = Node(tmp_path)
    assert node.freshness.problem() == ""
    await node.knows(an_entry())
    assert node.freshness.problem() == ""


async def test_with_a_freshness_key_a_statement_is_needed(node):
    assert "no statement" in node.freshness.problem()
    with pytest.raises(OrderRejectedError) as refused:
        node.freshness.require()
    assert (refused.value.check, refused.value.rejection) == (18, RejectionReason.STALE)
    assert await node.hears()
    assert node.freshness.problem() == ""
    node.freshness.require()


async def test_a_keyset_that_has_just_begun_to_ask_leaves_time_for_the_first_statement(tmp_path):
    node = Node(tmp_path)
    await node.knows(*entries(not_before=START - MAX + TICK))
    assert node.freshness.problem() == ""
    node.clock.advance(TICK)
    assert "no statement" in node.freshness.problem()


async def test_a_statement_counts_for_its_time_and_not_a_moment_longer(node):
    await node.hears()
    node.clock.advance(MAX)
    assert node.freshness.problem() == ""
    node.clock.advance(TICK)
    assert "old" in node.freshness.problem()


async def test_an_older_statement_counts_only_for_the_rest(node):
    await node.hears(ago=timedelta(seconds=40))
    node.clock.advance(timedelta(seconds=20))
    assert node.freshness.problem() == ""
    node.clock.advance(TICK)
    assert node.freshness.problem() != ""


async def test_setting_the_wall_clock_back_makes_nothing_fresh(node):
    await node.hears()
    node.clock.advance(MAX + TICK)
    node.clock.set_wall(START)
    assert node.freshness.problem() != ""


async def test_replayed_statement(node):
    old = await statement(node.clock.now())
    assert node.freshness.take(old)
    node.clock.advance(timedelta(seconds=30))
    assert not node.freshness.take(old)
    node.clock.advance(timedelta(seconds=30) + TICK)
    assert not node.freshness.take(old)
    assert node.freshness.problem() != ""


async def test_an_older_statement_after_a_newer_one_changes_nothing(node):
    await node.hears()
    assert not await node.hears(ago=timedelta(seconds=10))


async def test_a_statement_from_the_future_does_not_count_for_longer(node):
    assert await node.hears(ago=-timedelta(seconds=30))
    with pytest.raises(RollbackError, match="check 3"):
        await node.hears(ago=-timedelta(seconds=30, milliseconds=1))


async def test_forged_statement(node):
    forged = bytearray(await statement(node.clock.now()))
    at = forged.index(b'"sig":"') + 8
    forged[at : at + 1] = b"B" if forged[at : at + 1] == b"A" else b"A"
    with pytest.raises((SignatureInvalidError, MalformedError)):
        node.freshness.take(bytes(forged))
    assert node.freshness.problem() != ""


async def test_statement_by_the_order_key_the_root_or_a_stranger(node):
    for key in (ORDER, ROOT, ed25519_key("stranger")):
        with pytest.raises(UnknownKeyError):
            await node.hears(key=key)


async def test_statement_by_a_revoked_key(tmp_path):
    node = Node(tmp_path)
    await node.knows(*entries(revoked_at=START))
    with pytest.raises(UnknownKeyError):
        await node.hears()
    assert node.freshness.problem() != ""


async def test_statement_of_another_installation(node):
    with pytest.raises(VerificationError, match="check 3"):
        await node.hears(installation="another")


async def test_a_payload_of_another_type_is_no_statement(node):
    with pytest.raises(PayloadTypeError):
        node.freshness.take(await sign_envelope(KEYSET_TYPE, b"{}", [signer(FRESH)]))


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b'{"type":"agentfactory.freshness.v2"}', b"[1]", b"x" * 9000]
)
async def test_what_is_signed_and_no_statement_is_refused(node, payload):
    with pytest.raises((MalformedError, UnsupportedVersionError)):
        node.freshness.take(await sign_envelope(FRESHNESS_TYPE, payload, [signer(FRESH)]))


async def test_a_statement_of_a_newer_keyset_shows_that_one_is_held_back(node):
    await node.hears(version=2)
    assert "keyset 2 exists" in node.freshness.problem()
    await node.knows(*entries(), version=2)
    assert node.freshness.problem() == ""


async def test_ending_or_revoking_the_freshness_key_does_not_switch_the_check_off(node):
    await node.hears()
    await node.knows(*entries(not_after=START + TICK), version=2)
    node.clock.advance(MAX + TICK)
    assert node.freshness.problem() != ""
