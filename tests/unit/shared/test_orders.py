import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from agentfactory.v1 import common_pb2, orders_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.canonical import canonical_json
from shared.digests import sha256_digest
from shared.dsse import ORDERS_TYPE, TEMPLATE_TYPE, sign_envelope
from shared.errors import (
    AgentFactoryError,
    InvalidInputError,
    MalformedError,
    PayloadTypeError,
    ProofInvalidError,
    SignatureInvalidError,
    UnknownFieldError,
    UnknownKeyError,
    UnsupportedVersionError,
    VerificationError,
)
from shared.limits import DEFAULT_LIMITS, LIMIT_FIELDS, Limits
from shared.manifest import Capabilities, HttpCapability, Profile
from shared.order_codec import decode_order, encode_order, needs_current_order
from shared.orders import EngineConstraint, verify_batch, verify_order_inclusion
from tests.fakes.clock import START
from tests.fixtures.keys import rsa_key, signer, trusting
from tests.fixtures.order_batches import sign_batch
from tests.unit.shared.builders import INSTALLATION, an_order

KEY = rsa_key("order")


async def batch(*orders, key=KEY, installation=INSTALLATION, epoch=2):
    return await sign_batch(orders, signer(key), installation=installation, epoch=epoch, issued_at=START)


def verify(envelope, *, installation=INSTALLATION, minimum_epoch=2):
    return verify_batch(envelope, keys=trusting(KEY), installation=installation, minimum_epoch=minimum_epoch)


def message(**changes) -> orders_pb2.Order:
    order = orders_pb2.Order.FromString(encode_order(an_order()))
    for name, value in changes.items():
        setattr(order, name, value)
    return order


def encoded(order: orders_pb2.Order) -> bytes:
    return order.SerializeToString(deterministic=True)


EVERYTHING = Capabilities(
    http=(
        HttpCapability(
            method="GET", url="https://a.test/", addresses=("10.0.0.0/8",), max_calls=1, max_bytes=2
        ),
    ),
    kv=True,
    secrets=("token",),
    record_host_calls=True,
)
"""Every capability there is."""


def test_order_survives_its_encoding():
    order = an_order(
        profile=Profile.DETERMINISTIC,
        engine=EngineConstraint(name="wasmer", version="7.4.2", config_digest=sha256_digest(b"c")),
        limits=Limits(wall_ms=1, output_bytes=2),
        capabilities=EVERYTHING,
        host_call_grants=("kv.get",),
        clock_start_at=datetime(2001, 1, 1, 0, 0, 0, 123456, tzinfo=UTC),
        traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01",
        retry_is_safe=True,
    )
    assert decode_order(encode_order(order)) == order


def test_every_field_of_the_contract_is_set_by_an_order():
    order = an_order(
        engine=EngineConstraint(name="wasmer"),
        capabilities=EVERYTHING,
        host_call_grants=("kv.get",),
        traceparent="x",
        retry_is_safe=True,
    )
    sent = orders_pb2.Order.FromString(encode_order(order))
    assert {field.name for field, _ in sent.ListFields()} == set(orders_pb2.Order.DESCRIPTOR.fields_by_name)


def test_unknown_field_is_refused():
    with pytest.raises(UnknownFieldError, match="check 2"):
        decode_order(encode_order(an_order()) + b"\xf8\x3f\x01")


def test_unknown_field_within_a_nested_message_is_refused():
    order = message()
    order.limits.CopyFrom(common_pb2.Limits.FromString(order.limits.SerializeToString() + b"\xf8\x3f\x01"))
    with pytest.raises(UnknownFieldError, match="check 2"):
        decode_order(encoded(order))


def test_unknown_field_within_a_repeated_message_is_refused():
    order = message()
    order.capabilities.http.append(common_pb2.HttpCapability.FromString(b"\x0a\x03GET\xf8\x3f\x01"))
    with pytest.raises(UnknownFieldError, match="check 2"):
        decode_order(encoded(order))


def test_second_encoding_of_the_same_order_is_refused():
    plain = encode_order(an_order())
    assert plain.startswith(b"\x0a\x15agentfactory.order.v2")
    twice = plain[: 2 + 0x15] + plain  # the type, then the whole order again: the last one wins
    with pytest.raises(MalformedError, match="check 4"):
        decode_order(twice)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05abc", b"\x00"])
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(MalformedError, match="check 1"):
        decode_order(data)


@pytest.mark.parametrize("data", [b"", b"\x0a\x15agentfactory.order.v4"])
def test_order_of_another_format_is_refused(data):
    with pytest.raises(UnsupportedVersionError, match="check 3"):
        decode_order(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"order_id": ""},
        {"order_id": "exe_017f22e2-79b0-7cc3-98c4-dc0c0c07398f"},
        {"installation": ""},
        {"epoch": 0},
        {"epoch": 2**63},
        {"tenant_id": ""},
        {"caller": ""},
        {"attempt_number": 0},
        {"fencing_token": 0},
        {"boot_id": "x"},
        {"template_digest": "sha256:"},
        {"module_digest": ""},
        {"input_commitment": "md5:1"},
        {"media_type": ""},
        {"profile": 0},
        {"profile": 9},
        {"seed": bytes(31)},
        {"nonce": bytes(15)},
        {"decision_id": ""},
        {"policy_digest": ""},
    ],
)
def test_field_that_is_missing_or_out_of_range_is_refused(changes):
    with pytest.raises(MalformedError, match="check 5"):
        decode_order(encoded(message(**changes)))


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o.limits.ClearField("open_files"),
        lambda o: o.ClearField("limits"),
        lambda o: o.ClearField("engine"),
        lambda o: o.ClearField("not_before"),
        lambda o: o.ClearField("expires_at"),
        lambda o: o.ClearField("lease"),
        lambda o: setattr(o.expires_at, "nanos", 1),
        lambda o: setattr(o.expires_at, "seconds", 2**62),
        lambda o: setattr(o.not_before, "nanos", -1),
        lambda o: o.expires_at.CopyFrom(o.not_before),
    ],
)
def test_nested_value_that_cannot_be_is_refused(change):
    order = message()
    change(order)
    with pytest.raises(MalformedError, match="check 5"):
        decode_order(encoded(order))


_RICH = encode_order(
    an_order(
        engine=EngineConstraint(name="wasmer", config_digest=sha256_digest(b"c")),
        capabilities=EVERYTHING,
        host_call_grants=("kv.get",),
        traceparent="x",
    )
)
_PLAIN = encode_order(an_order())
_NUMBERS = st.one_of(
    st.integers(-1, 2),
    st.sampled_from([999, 1000, 999_999_999, 10**9, 60, 61, 2**31 - 1, -(2**31), 253402300799, 253402300800]),
    st.sampled_from([-62135596800, -62135596801, 2**53 - 1, 2**53, 2**62, 1767225600]),
)


def odd_value(draw: st.DrawFn, field: FieldDescriptor) -> Any:
    kinds = FieldDescriptor
    if field.cpp_type == kinds.CPPTYPE_STRING:
        if field.type == kinds.TYPE_BYTES:
            return draw(st.binary(max_size=33))
        return draw(st.one_of(st.text(max_size=3), st.sampled_from([sha256_digest(b"odd"), "GET"])))
    return draw(st.booleans()) if field.cpp_type == kinds.CPPTYPE_BOOL else draw(_NUMBERS)


def change_one_field(draw: st.DrawFn, changed: Message) -> None:
    field = draw(st.sampled_from(list(changed.DESCRIPTOR.fields)))
    if draw(st.integers(0, 3)) == 0:
        changed.ClearField(field.name)
    elif field.message_type is not None:
        held = getattr(changed, field.name)
        one = held.add() if field.is_repeated else held
        one.SetInParent()
        change_one_field(draw, one)
    elif field.is_repeated:
        getattr(changed, field.name).append(odd_value(draw, field))
    else:
        try:
            setattr(changed, field.name, odd_value(draw, field))
        except ValueError:
            changed.ClearField(field.name)


@st.composite
def encodings_with_odd_fields(draw: st.DrawFn) -> bytes:
    changed = orders_pb2.Order.FromString(draw(st.sampled_from([_PLAIN, _RICH])))
    for _ in range(draw(st.integers(1, 3))):
        change_one_field(draw, changed)
    return encoded(changed)


@st.composite
def encodings_with_odd_bytes(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from([_PLAIN, _RICH])))
    at = draw(st.integers(0, len(data)))
    data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data)


@settings(deadline=None)  # an example that meets a busy machine is no failure; pytest bounds the whole
@given(st.one_of(encodings_with_odd_fields(), encodings_with_odd_bytes()))
def test_whatever_is_taken_is_what_the_order_would_be_encoded_as(data):
    try:
        order = decode_order(data)
    except AgentFactoryError:
        return
    assert encode_order(order) == data


@pytest.mark.parametrize(
    "name", [field.name for field in orders_pb2.Order.DESCRIPTOR.fields if field.has_presence]
)
def test_message_within_an_order_is_there_even_when_it_says_nothing(name):
    order = message()
    order.ClearField(name)
    with pytest.raises(MalformedError, match="check 5"):
        decode_order(encoded(order))


@pytest.mark.parametrize(
    "kept",
    [
        (common_pb2.Limits, set(LIMIT_FIELDS)),
        (common_pb2.Capabilities, {"http", "kv", "secrets", "record_host_calls", "llm"}),
        (common_pb2.LlmCapability, {"models", "max_tokens", "max_cost_micros"}),
        (common_pb2.HttpCapability, {"method", "url", "addresses", "max_calls", "max_bytes"}),
        (orders_pb2.EngineConstraint, {"name", "version", "config_digest"}),
    ],
)
def test_every_nested_field_of_the_contract_is_read_and_has_no_presence_of_its_own(kept):
    kind, names = kept
    assert {field.name for field in kind.DESCRIPTOR.fields} == names
    # Whether models are granted at all is the one presence that says something: the order's format goes with it.
    assert {field.name for field in kind.DESCRIPTOR.fields if field.has_presence} <= {"llm"}


@pytest.mark.parametrize(
    ("field", "seconds", "nanos"),
    [
        ("expires_at", 1767225600, 1),
        ("not_before", 0, -1000),
        ("clock_start_at", 0, 1_000_000_000),
        ("clock_start_at", -62135596801, 0),
        ("clock_start_at", 253402300800, 0),
        ("lease", 1, 1),
        ("lease", 2, -1000),
        ("lease", 0, 2_000_000_000),
    ],
)
def test_time_that_has_another_encoding_or_none_is_refused(field, seconds, nanos):
    order = message()
    getattr(order, field).seconds, getattr(order, field).nanos = seconds, nanos
    with pytest.raises(MalformedError, match="check 5"):
        decode_order(encoded(order))


def test_order_is_bounded():
    with pytest.raises(InvalidInputError, match="the bound is"):
        encode_order(an_order(caller="x" * 262_144))
    with pytest.raises(MalformedError, match="check 1"):
        decode_order(bytes(262_145))


@pytest.mark.parametrize(
    "changes",
    [
        {"lease": timedelta(0)},
        {"expires_at": START},
        {"not_before": datetime(2026, 1, 1)},  # noqa: DTZ001 - naive on purpose
        {"attempt_number": 0},
    ],
)
def test_order_that_contradicts_itself_is_never_encoded(changes):
    with pytest.raises(InvalidInputError):
        encode_order(an_order(**changes))


# --- the older version ---


def an_older_order(**changes):
    return an_order(format="agentfactory.order.v1", **changes)


def test_rule_11_order_of_version_1_is_written_without_what_came_later():
    http = Capabilities(http=(HttpCapability(method="GET", url="https://a.test/"),))
    order = an_older_order(capabilities=http, limits=Limits(wall_ms=5))
    sent = orders_pb2.Order.FromString(encode_order(order))
    assert sent.type == "agentfactory.order.v1"
    assert {field.name for field, _ in sent.limits.ListFields()} == {
        "wall_ms",
        "cpu_ms",
        "memory_bytes",
        "output_bytes",
        "log_bytes",
        "open_files",
    }
    assert [field.name for field, _ in sent.capabilities.ListFields()] == ["http"]


def test_rule_11_order_of_version_1_grants_the_defaults_of_what_came_later():
    order = an_older_order(limits=Limits(wall_ms=5, open_files=1))
    read = decode_order(encode_order(order))
    assert read == order
    assert read.limits.fuel == DEFAULT_LIMITS.fuel
    assert encode_order(read) == encode_order(order)


_CAME_LATER = {
    "kv": {"capabilities": Capabilities(kv=True)},
    "secrets": {"capabilities": Capabilities(secrets=("token",))},
    "record": {"capabilities": Capabilities(record_host_calls=True)},
    "addresses": {
        "capabilities": Capabilities(
            http=(HttpCapability(method="GET", url="https://a.test/", addresses=("10.0.0.0/8",)),)
        )
    },
    "grants": {"host_call_grants": ("kv.get",)},
    "scratch": {"limits": Limits(scratch_bytes=1)},
    "random": {"limits": Limits(random_bytes=0)},
}


@pytest.mark.parametrize("later", _CAME_LATER.values(), ids=_CAME_LATER)
def test_rule_11_what_version_1_cannot_say_is_not_said_in_it_and_not_read_from_it(later):
    with pytest.raises(InvalidInputError, match="cannot say"):
        encode_order(an_older_order(**later))
    forged = orders_pb2.Order.FromString(encode_order(an_order(**later)))
    forged.type = "agentfactory.order.v1"
    with pytest.raises(MalformedError, match="came later"):
        decode_order(encoded(forged))


def test_order_of_a_format_that_nobody_knows_is_neither_written_nor_read():
    with pytest.raises(InvalidInputError, match="format"):
        encode_order(an_order(format="agentfactory.order.v9"))
    with pytest.raises(UnsupportedVersionError):
        decode_order(encoded(message(type="agentfactory.order.v9")))


def test_only_what_version_1_can_grant_is_left_to_it():
    destination = Capabilities(http=(HttpCapability(method="GET", url="https://a.test/"),))
    assert not needs_current_order(Limits(wall_ms=1), Capabilities())
    assert needs_current_order(Limits(), destination)  # grants http.fetch, which it has no word for
    assert needs_current_order(Limits(scratch_bytes=1), Capabilities())


# --- batches ---


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256])
async def test_one_signature_serves_every_order_of_the_batch_alone(count):
    orders = [encode_order(an_order(fencing_token=n + 1)) for n in range(count)]
    signed = await batch(*orders)
    root = verify(signed.envelope)
    assert (root.tree_size, root.epoch, root.issued_at) == (count, 2, START)
    for index, order in enumerate(orders):
        digest = verify_order_inclusion(order, index=index, path=signed.paths[index], verified_root=root)
        assert digest == sha256_digest(order)


async def test_order_under_the_path_or_index_of_another_is_refused():
    orders = [encode_order(an_order(fencing_token=n + 1)) for n in range(5)]
    signed = await batch(*orders)
    root = verify(signed.envelope)
    for index, path in ((1, signed.paths[0]), (0, signed.paths[1]), (5, signed.paths[0]), (0, ())):
        with pytest.raises(ProofInvalidError):
            verify_order_inclusion(orders[0], index=index, path=path, verified_root=root)


async def test_altered_order_is_refused():
    order = encode_order(an_order())
    signed = await batch(order, encode_order(an_order()))
    altered = encode_order(replace(decode_order(order), fencing_token=8))
    with pytest.raises(ProofInvalidError):
        verify_order_inclusion(altered, index=0, path=signed.paths[0], verified_root=verify(signed.envelope))


async def test_inner_node_of_the_tree_cannot_pass_as_an_order():
    orders = [encode_order(an_order(fencing_token=n + 1)) for n in range(4)]
    signed = await batch(*orders)
    root = verify(signed.envelope)
    inner = signed.paths[2][1] + signed.paths[0][1]
    with pytest.raises(ProofInvalidError):
        verify_order_inclusion(inner, index=0, path=(), verified_root=replace(root, tree_size=1))


async def test_batch_by_another_key_or_altered_is_refused():
    signed = await batch(b"order", key=rsa_key("mallory"))
    with pytest.raises(UnknownKeyError):
        verify(signed.envelope)
    envelope = json.loads((await batch(b"order")).envelope)
    envelope["payload"] = json.loads(signed.envelope)["payload"][:-4] + "AAAA"
    with pytest.raises(SignatureInvalidError):
        verify(canonical_json(envelope))


async def test_batch_of_another_installation_or_an_older_epoch_is_refused():
    envelope = (await batch(b"order")).envelope
    with pytest.raises(VerificationError, match="check 3"):
        verify(envelope, installation="elsewhere")
    with pytest.raises(VerificationError, match="check 4"):
        verify(envelope, minimum_epoch=3)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d.update(extra=1), UnknownFieldError),
        (lambda d: d.update(type="agentfactory.orders.v2"), UnsupportedVersionError),
        (lambda d: d.update(tree_size=0), MalformedError),
        (lambda d: d.update(tree_size=257), MalformedError),
        (lambda d: d.update(root="x"), MalformedError),
        (lambda d: d.pop("issued_at"), MalformedError),
    ],
)
async def test_malformed_root_is_refused_though_well_signed(change, error):
    document = {
        "type": "agentfactory.orders.v1",
        "installation": INSTALLATION,
        "epoch": 2,
        "tree_size": 1,
        "root": sha256_digest(b""),
        "issued_at": "2026-01-01T12:00:00.000000Z",
    }
    verify(await sign_envelope(ORDERS_TYPE, canonical_json(document), [signer(KEY)]))
    change(document)
    with pytest.raises(error):
        verify(await sign_envelope(ORDERS_TYPE, canonical_json(document), [signer(KEY)]))
    with pytest.raises(PayloadTypeError):
        verify(await sign_envelope(TEMPLATE_TYPE, canonical_json(document), [signer(KEY)]))


async def test_size_of_a_batch_is_bounded():
    for orders in ([], [b"order"] * 257):
        with pytest.raises(InvalidInputError, match="1 to 256"):
            await batch(*orders)
    with pytest.raises(InvalidInputError, match="more than"):
        await batch(bytes(262_145))
