"""Attacks on orders, one test each: every one ends in a rejection with the number of its check."""

from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from agentfactory.v1 import orders_pb2

from data_plane.orders.ledger import OrderLedger
from data_plane.orders.verifier import (
    Check,
    check_engine,
    check_input,
    check_node_policy,
    check_parameters,
    verify_order,
    verify_root,
)
from shared.canonical import canonical_json
from shared.digests import digest_from_raw, sha256_digest
from shared.dsse import ORDERS_TYPE, sign_envelope
from shared.errors import InvalidInputError, OrderRejectedError, RejectionReason
from shared.fields import time_to_text
from shared.limits import Limits
from shared.manifest import Capabilities, HttpCapability, Profile
from shared.merkle import batch_paths
from shared.order_codec import encode_order
from shared.orders import EngineConstraint
from tests.fakes.clock import START
from tests.fixtures.keys import rsa_key, signer, trusting
from tests.unit.data_plane.builders import ENGINE, ENGINES, INPUT, SALT, facts, order, signed
from tests.unit.shared.builders import INSTALLATION, a_manifest

KEYS = trusting(rsa_key("order"))
SECOND = timedelta(seconds=1)
GET = HttpCapability(method="GET", url="https://a.test/")


@contextmanager
def refused(check: Check, reason: RejectionReason):
    with pytest.raises(OrderRejectedError) as caught:
        yield caught
    assert (caught.value.check, caught.value.rejection) == (check, reason), caught.value


def root_of(envelope, *, keys=KEYS, epoch=1, installation=INSTALLATION):
    return verify_root(envelope, keys=keys, installation=installation, epoch=epoch)


async def verified(one, *, now=START, batch_epoch=1, **changes):
    envelope, deliveries = await signed(one, epoch=batch_epoch)
    return verify_order(deliveries[0], root=root_of(envelope), facts=facts(**changes), now=now)


async def test_order_that_is_right_is_returned_as_it_was_signed():
    one = order()

    assert await verified(one) == one


async def test_unknown_order_key():
    envelope, _ = await signed(order(), key=rsa_key("stranger"))

    with refused(Check.ROOT_SIGNATURE, RejectionReason.SIGNATURE):
        root_of(envelope)


async def test_altered_root():
    envelope, _ = await signed(order())
    other, _ = await signed(order(), order())
    altered = envelope[: len(envelope) // 2] + other[len(envelope) // 2 :]

    with refused(Check.ROOT_SIGNATURE, RejectionReason.SIGNATURE):
        root_of(altered)


async def test_root_of_another_installation():
    envelope, _ = await signed(order(), installation="elsewhere")

    with refused(Check.ROOT_SIGNATURE, RejectionReason.SIGNATURE):
        root_of(envelope)


async def test_rule_16_root_of_an_epoch_that_no_keyset_has_begun():
    envelope, _ = await signed(order(epoch=2), epoch=2)

    root_of(envelope, epoch=2)
    with refused(Check.ROOT_SIGNATURE, RejectionReason.SIGNATURE):
        root_of(envelope, epoch=1)


async def test_root_of_an_epoch_before_the_restore():
    envelope, _ = await signed(order())

    with refused(Check.ROOT_SIGNATURE, RejectionReason.SIGNATURE):
        root_of(envelope, epoch=2)


@pytest.mark.parametrize("position", [0, 10, -1])
async def test_altered_order(position: int):
    envelope, (delivery, _) = await signed(order(), order())
    content = bytearray(delivery.order)
    content[position] ^= 1

    with refused(Check.INCLUSION, RejectionReason.SIGNATURE):
        verify_order(
            replace(delivery, order=bytes(content)), root=root_of(envelope), facts=facts(), now=START
        )


async def test_order_of_another_batch():
    envelope, _ = await signed(order(), order())
    _, (stranger, _) = await signed(order(), order())

    with refused(Check.INCLUSION, RejectionReason.SIGNATURE):
        verify_order(stranger, root=root_of(envelope), facts=facts(), now=START)


async def signed_content(content: bytes):
    """Sign bytes that no honest control plane would."""
    payload = canonical_json(
        {
            "type": "agentfactory.orders.v1",
            "installation": INSTALLATION,
            "epoch": 1,
            "tree_size": 1,
            "root": digest_from_raw(batch_paths([content]).root),
            "issued_at": time_to_text(START),
        }
    )
    envelope = await sign_envelope(ORDERS_TYPE, payload, [signer(rsa_key("order"))])
    _, (delivery,) = await signed(order())
    return envelope, replace(delivery, order=content, path=())


@pytest.mark.parametrize(
    ("content", "check"),
    [
        (b"\xff\xff\xff", Check.FORMAT),
        (b"", Check.VERSION),
        (encode_order(order()) + b"\xba\x3e\x01x", Check.FORMAT),
    ],
    ids=["no protobuf", "empty", "unknown field"],
)
async def test_content_that_is_no_order(content: bytes, check: Check):
    envelope, delivery = await signed_content(content)

    with refused(check, RejectionReason.FORMAT):
        verify_order(delivery, root=root_of(envelope), facts=facts(), now=START)


async def test_unknown_field_in_a_nested_message():
    message = orders_pb2.Order.FromString(encode_order(order()))
    message.limits.MergeFromString(b"\xba\x3e\x01x")
    envelope, delivery = await signed_content(message.SerializeToString(deterministic=True))

    with refused(Check.FORMAT, RejectionReason.FORMAT):
        verify_order(delivery, root=root_of(envelope), facts=facts(), now=START)


async def test_unknown_version():
    message = orders_pb2.Order.FromString(encode_order(order()))
    message.type = "agentfactory.order.v4"
    envelope, delivery = await signed_content(message.SerializeToString(deterministic=True))

    with refused(Check.VERSION, RejectionReason.FORMAT):
        verify_order(delivery, root=root_of(envelope), facts=facts(), now=START)


async def test_order_for_another_installation():
    with refused(Check.INSTALLATION, RejectionReason.AUDIENCE):
        await verified(order(installation="elsewhere"))


async def test_order_of_another_epoch_than_its_root():
    with refused(Check.INSTALLATION, RejectionReason.AUDIENCE):
        await verified(order(epoch=2), batch_epoch=1)


async def test_order_for_another_node():
    other = order().node_id.replace(order().node_id[-4:], "0000")

    with refused(Check.NODE, RejectionReason.AUDIENCE):
        await verified(order(node_id=other))


async def test_order_of_another_boot():
    other = order().boot_id.replace(order().boot_id[-4:], "0000")

    with refused(Check.BOOT, RejectionReason.STALE):
        await verified(order(boot_id=other))


@pytest.mark.parametrize("late", [timedelta(seconds=90), timedelta(seconds=91)])
async def test_expired(late: timedelta):
    with refused(Check.TIME, RejectionReason.TIME):
        await verified(order(), now=START + late)


@pytest.mark.parametrize(
    "now", [START - 30 * SECOND, START, START + timedelta(seconds=89, microseconds=999_999)]
)
async def test_valid_within_its_life_and_the_skew(now):
    assert await verified(order(), now=now)


async def test_not_yet_valid():
    with refused(Check.TIME, RejectionReason.TIME):
        await verified(order(), now=START - timedelta(seconds=30, microseconds=1))


async def test_life_longer_than_nonces_are_kept():
    with refused(Check.TIME, RejectionReason.TIME):
        await verified(order(expires_at=START + timedelta(seconds=60, microseconds=1)))


def ledger() -> OrderLedger:
    return OrderLedger(max_order_life=timedelta(seconds=60), max_skew=timedelta(seconds=30))


def test_replayed_order():
    book, one = ledger(), order()
    book.accept(one, now=START)

    with refused(Check.NONCE, RejectionReason.REPLAY):
        book.accept(one, now=START + 89 * SECOND)


@pytest.mark.parametrize("token", [6, 7])
def test_stale_fencing_token(token: int):
    book, newest = ledger(), order(fencing_token=7, nonce=b"n" * 16)
    book.accept(newest, now=START)
    stale = replace(newest, fencing_token=token, nonce=b"m" * 16)

    with refused(Check.FENCING, RejectionReason.FENCING):
        book.accept(stale, now=START + SECOND)


def test_token_of_an_older_epoch_is_stale_however_high():
    book, newest = ledger(), order(epoch=2, fencing_token=1, nonce=b"n" * 16)
    book.accept(newest, now=START)

    with refused(Check.FENCING, RejectionReason.FENCING):
        book.accept(replace(newest, epoch=1, fencing_token=99, nonce=b"m" * 16), now=START)


@pytest.mark.parametrize(
    ("salt", "content"),
    [(SALT, b"inpuT"), (SALT, INPUT + b"!"), (SALT[:-1], INPUT), (bytes(32), INPUT), (SALT, b"")],
)
def test_input_that_was_not_committed_to(salt: bytes, content: bytes):
    with refused(Check.INPUT, RejectionReason.DIGEST):
        check_input(order(), salt, content)


def test_altered_parameters():
    with refused(Check.PARAMETERS, RejectionReason.DIGEST):
        check_parameters(order(), b'{"x":1}')


@pytest.mark.parametrize(
    "wanted",
    [
        EngineConstraint(name="wasmtime"),
        EngineConstraint(name="wasmer", version="7.4.1"),
        EngineConstraint(config_digest=sha256_digest(b"other")),
    ],
)
def test_another_engine(wanted: EngineConstraint):
    with refused(Check.ENGINE, RejectionReason.ENGINE):
        check_engine(order(engine=wanted), facts())


def test_a_profile_that_is_not_offered_is_refused_for_a_reason_of_this_node_alone():
    with refused(Check.ENGINE, RejectionReason.ENGINE):
        check_engine(order(profile=Profile.PORTABLE), facts())
    assert RejectionReason.ENGINE.concerns_node_alone


def test_the_engine_under_the_orders_profile_counts():
    constraint = EngineConstraint(config_digest=ENGINES[Profile.DETERMINISTIC].config_digest)
    offered = facts(engines=ENGINES)
    check_engine(order(profile=Profile.DETERMINISTIC, engine=constraint), offered)
    for other in (Profile.DEFAULT, Profile.PORTABLE):
        with refused(Check.ENGINE, RejectionReason.ENGINE):
            check_engine(order(profile=other, engine=constraint), offered)


def test_engine_that_is_this_one():
    check_engine(order(engine=EngineConstraint(name="wasmer", config_digest=ENGINE.config_digest)), facts())
    check_engine(order(), facts())


@pytest.mark.parametrize(
    ("changes", "manifest"),
    [
        ({}, {"profile": Profile.DETERMINISTIC}),
        ({"host_call_grants": ("kv.get",)}, {}),
        ({"capabilities": Capabilities(http=(GET,))}, {}),
    ],
    ids=["profile not asked for", "host call", "capability not asked for"],
)
def test_what_neither_operator_nor_publisher_allow(changes, manifest):
    with refused(Check.NODE_POLICY, RejectionReason.POLICY):
        check_node_policy(order(**changes), manifest=a_manifest(**manifest))


def test_capability_that_the_template_asks_for():
    asked = Capabilities(http=(GET,))

    check_node_policy(order(capabilities=asked), manifest=a_manifest(capabilities=asked))


ALL = Capabilities(http=(GET,), kv=True, secrets=("api",), record_host_calls=True)


@pytest.mark.parametrize(
    "granted",
    [
        Capabilities(http=(replace(GET, addresses=("10.0.0.0/8",)),)),
        Capabilities(http=(replace(GET, max_calls=2),)),
        Capabilities(kv=True),
        Capabilities(secrets=("api", "other")),
        Capabilities(record_host_calls=True),
    ],
    ids=["addresses", "calls", "kv", "secrets", "recording"],
)
def test_every_part_of_a_capability_is_one_that_the_template_asks_for(granted):
    asked = Capabilities(http=(GET,), secrets=("api",))
    ordered = order(capabilities=granted, host_call_grants=granted.host_call_grants)
    with refused(Check.NODE_POLICY, RejectionReason.POLICY):
        check_node_policy(ordered, manifest=a_manifest(capabilities=asked))


def test_host_calls_that_the_capabilities_come_to_are_allowed():
    ordered = order(capabilities=ALL, host_call_grants=ALL.host_call_grants)
    check_node_policy(ordered, manifest=a_manifest(capabilities=ALL))


def test_host_call_without_its_capability():
    ordered = order(capabilities=replace(ALL, kv=False), host_call_grants=ALL.host_call_grants)
    with refused(Check.NODE_POLICY, RejectionReason.POLICY):
        check_node_policy(ordered, manifest=a_manifest(capabilities=ALL))


def test_the_smaller_limit_counts():
    ceilings = Limits(wall_ms=100, cpu_ms=50_000, memory_bytes=1, output_bytes=2, log_bytes=3, open_files=4)
    ordered = Limits(wall_ms=200, cpu_ms=300)

    granted = ordered.limited_by(ceilings)

    assert granted == Limits(
        wall_ms=100, cpu_ms=300, memory_bytes=1, output_bytes=2, log_bytes=3, open_files=4
    )


@pytest.mark.parametrize("at", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)])
async def test_order_of_the_first_or_last_year_is_refused_like_any_other(at):
    with refused(Check.TIME, RejectionReason.TIME):
        await verified(order(not_before=at, expires_at=at + 30 * SECOND))


@pytest.mark.parametrize(
    "lease", [timedelta(0), timedelta(seconds=60, microseconds=1), timedelta(days=10**6)]
)
def test_order_whose_lease_is_none_or_for_ever_is_no_order(lease):
    with pytest.raises(InvalidInputError, match="lease"):
        encode_order(order(lease=lease))
