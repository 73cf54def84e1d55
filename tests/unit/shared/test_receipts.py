import json
from dataclasses import is_dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import ids
from shared.canonical import canonical_json
from shared.digests import sha256_digest
from shared.dsse import IN_TOTO_TYPE, TEMPLATE_TYPE, encode_envelope, envelope_of, pae, sign_envelope
from shared.errors import (
    MalformedError,
    PayloadTypeError,
    ReceiptInvalidError,
    RejectionReason,
    SignatureInvalidError,
    UnknownFieldError,
    UnknownKeyError,
    VerificationError,
)
from shared.outcomes import LimitName, Outcome
from shared.receipt_codec import encode_readable_receipt, encode_receipt, sign_receipt, verify_receipt
from shared.receipts import (
    MAX_DENIALS,
    OLDER_PREDICATE_TYPE,
    PREDICATE_TYPE,
    AttemptIdentity,
    Denial,
    ExpectedReceipt,
    ReceiptPredicate,
    Rejection,
    check_follows,
    check_matches,
    merge_denials,
    predicate_type_for,
    receipt_hash,
)
from shared.resources import RESOURCE_FIELDS, ResourcesUsed
from shared.signatures import Signature
from tests.fakes.clock import START, FakeClock, FakeRandom
from tests.fixtures.keys import ed25519_key, rsa_key, signer
from tests.unit.shared.builders import BOOT, INSTALLATION, NODE, a_receipt, a_rejection

KEY = ed25519_key("node")
TIMES = {"wall", "cpu", "host_call_time"}
OTHER_NODE = ids.new_id(ids.NODE, FakeClock(), FakeRandom("other"))
DENIED = Denial(method="http.fetch", reason="not-granted")
EVERYTHING = ResourcesUsed(
    wall=timedelta(milliseconds=1),
    cpu=timedelta(milliseconds=2),
    host_call_time=timedelta(microseconds=3),
    **{name: number for number, name in enumerate(RESOURCE_FIELDS, 4) if name not in TIMES},
).without_llm
DENIED_JSON = {"method": "http.fetch", "reason": "not-granted", "count": 1}
FIRST_RESOURCES = {"wall", "cpu", "peak_memory_bytes", "output_bytes", "log_bytes"}
KILLED = {"outcome": Outcome.KILLED, "exit_code": None}
NEVER_STARTED = {
    "started_at": None,
    "output_commitment": None,
    "outcome": Outcome.CANCELLED,
    "exit_code": None,
}
WROTE = {"kv_writes_digest": sha256_digest(b"writes")}
FORGED = Rejection(check=1, reason=RejectionReason.SIGNATURE, message="signature does not match")


def verify(envelope, *, node_id=NODE, key=KEY):
    return verify_receipt(envelope, node_id=node_id, node_key=key.public)


async def signed(receipt, key=KEY) -> bytes:
    return await sign_receipt(receipt, signer(key))


async def signed_document(change) -> bytes:
    document = json.loads(encode_receipt(a_receipt()))
    change(document)
    return await sign_envelope(IN_TOTO_TYPE, canonical_json(document), [signer(KEY)])


def expected(receipt) -> ExpectedReceipt:
    return ExpectedReceipt(
        type=PREDICATE_TYPE,
        installation=INSTALLATION,
        node_id=NODE,
        boot_id=BOOT,
        order_digest=receipt.order_digest,
        attempt=receipt.attempt,
        template_digest=receipt.template_digest,
        module_digest=receipt.module_digest,
        input_commitment=receipt.input_commitment,
    )


@pytest.mark.parametrize(
    "receipt",
    [
        a_receipt(),
        a_receipt(sequence=2, previous=sha256_digest(b"before"), log_commitment=sha256_digest(b"log")),
        a_receipt(outcome=Outcome.FAILED, exit_code=3),
        a_receipt(outcome=Outcome.TRAPPED, exit_code=None, trap="unreachable"),
        a_receipt(outcome=Outcome.KILLED, exit_code=None, limit=LimitName.WALL_MS),
        a_receipt(outcome=Outcome.CANCELLED, exit_code=None),
        a_receipt(
            outcome=Outcome.CANCELLED, exit_code=None, engine=None, started_at=None, output_commitment=None
        ),
        a_rejection(FORGED),
        a_receipt(
            outcome=Outcome.KILLED,
            exit_code=None,
            limit=LimitName.HOST_CALLS,
            recording_commitment=sha256_digest(b"recording"),
            denials=(DENIED, replace(DENIED, method="kv.put", count=2)),
            resources=EVERYTHING,
        ),
        a_receipt(kv_writes_digest=sha256_digest(b"writes")),
        a_receipt(type=OLDER_PREDICATE_TYPE),
        a_rejection(FORGED, type=OLDER_PREDICATE_TYPE),
    ],
    ids=lambda receipt: receipt.outcome,
)
async def test_receipt_of_every_outcome_comes_back_whole(receipt):
    envelope = await signed(receipt)
    verified = verify(envelope)
    assert verified.predicate == receipt
    assert (verified.hash, verified.envelope) == (sha256_digest(envelope), envelope)


def test_statement_is_in_toto_v1_about_the_order():
    receipt = a_receipt()
    statement = json.loads(encode_receipt(receipt))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://agentfactory.dev/receipt/v2"
    older = json.loads(encode_receipt(replace(receipt, type=OLDER_PREDICATE_TYPE)))
    assert older == {**statement, "predicateType": "https://agentfactory.dev/receipt/v1"}
    assert statement["subject"] == [
        {
            "name": receipt.attempt.order_id,
            "digest": {"sha256": receipt.order_digest.removeprefix("sha256:")},
        }
    ]


async def test_receipt_by_the_key_of_another_node_is_refused():
    with pytest.raises(UnknownKeyError):
        verify(await signed(a_receipt(), ed25519_key("other node")))


async def test_receipt_that_names_another_node_than_its_signer_is_refused():
    with pytest.raises(ReceiptInvalidError, match="check 6"):
        verify(await signed(a_receipt(node_id=OTHER_NODE)))


async def test_altered_receipt_is_refused():
    envelope, other = json.loads(await signed(a_receipt())), json.loads(await signed(a_rejection(FORGED)))
    with pytest.raises(SignatureInvalidError):
        verify(canonical_json({**envelope, "payload": other["payload"]}))


async def test_receipt_signed_with_rsa_is_refused():
    with pytest.raises(ReceiptInvalidError, match="check 1"):
        verify(await signed(a_receipt(), rsa_key()), key=rsa_key())


async def test_payload_of_another_type_is_no_receipt():
    envelope = await sign_envelope(TEMPLATE_TYPE, encode_receipt(a_receipt()), [signer(KEY)])
    with pytest.raises(PayloadTypeError):
        verify(envelope)


@pytest.mark.parametrize(
    "where",
    [
        lambda d: d,
        lambda d: d["predicate"],
        lambda d: d["predicate"]["attempt"],
        lambda d: d["predicate"]["engine"],
        lambda d: d["predicate"]["resources"],
        lambda d: d["predicate"].setdefault("denials", [dict(DENIED_JSON)])[0],
        lambda d: d["subject"][0],
        lambda d: d["subject"][0]["digest"],
    ],
)
async def test_unknown_field_is_refused_at_every_depth(where):
    with pytest.raises(UnknownFieldError):
        verify(await signed_document(lambda d: where(d).update(extra=1)))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda d: d.update(predicateType="https://slsa.dev/provenance/v1"),
        lambda d: d.update(subject=[]),
        lambda d: d.update(subject=d["subject"] * 2),
        lambda d: d["subject"][0]["digest"].update(sha256="0" * 64),
        lambda d: d["predicate"].update(outcome="great"),
        lambda d: d["predicate"].update(outcome="lost"),
        lambda d: d["predicate"].update(sequence=0),
        lambda d: d["predicate"].update(sequence=2),
        lambda d: d["predicate"].update(exit_code=1),
        lambda d: d["predicate"].update(exit_code=2**32),
        lambda d: d["predicate"].update(limit="wall_ms"),
        lambda d: d["predicate"].update(boot_id="x"),
        lambda d: d["predicate"].update(previous=None),
        lambda d: d["predicate"]["resources"].update(wall_us=-1),
        lambda d: d["predicate"].pop("module_digest"),
        lambda d: d["predicate"].update(finished_at="2025-01-01T00:00:00.000000Z"),
        lambda d: d.update(predicateType="https://agentfactory.dev/receipt/v4"),
        lambda d: d["predicate"].update(denials=[]),
        lambda d: d["predicate"].update(denials=None),
        lambda d: d["predicate"].update(denials=[DENIED_JSON] * 2),
        lambda d: d["predicate"].update(denials=[{**DENIED_JSON, "count": 0}]),
        lambda d: d["predicate"].update(denials=[{**DENIED_JSON, "method": "Http.Fetch\n"}]),
        lambda d: d["predicate"].update(recording_commitment="sha256:00"),
        lambda d: d["predicate"]["resources"].update(fuel=0),
        lambda d: d["predicate"]["resources"].update(host_call_us=0),
        lambda d: d["predicate"]["resources"].update(host_calls=2**32),
    ],
)
async def test_malformed_receipt_is_refused_though_well_signed(change):
    with pytest.raises(ReceiptInvalidError):
        verify(await signed_document(change))


async def test_receipt_that_is_not_canonical_is_refused():
    payload = json.dumps(json.loads(encode_receipt(a_receipt()))).encode()
    with pytest.raises(MalformedError, match="RFC 8785"):
        verify(await sign_envelope(IN_TOTO_TYPE, payload, [signer(KEY)]))


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        (1, {"outcome": Outcome.LOST, "exit_code": None}),
        (1, {"outcome": Outcome.EXPIRED, "exit_code": None}),
        (2, {"sequence": 0}),
        (2, {"sequence": 2}),
        (2, {"previous": sha256_digest(b"x")}),
        (3, {"exit_code": 1}),
        (3, {"exit_code": None}),
        (3, {"outcome": Outcome.FAILED}),
        (3, {"outcome": Outcome.FAILED, "exit_code": None}),
        (3, {"outcome": Outcome.KILLED, "exit_code": None}),
        (3, {"outcome": Outcome.KILLED, "limit": LimitName.CPU_MS}),
        (3, {"outcome": Outcome.TRAPPED, "exit_code": None}),
        (3, {"rejection": FORGED}),
        (3, {"outcome": Outcome.REJECTED, "exit_code": None}),
        (4, {"attempt": None}),
        (4, {"module_digest": None}),
        (4, {"engine": None}),
        (4, {"started_at": None}),
        (4, {"outcome": Outcome.CANCELLED, "exit_code": None, "attempt": None}),
        (5, {"outcome": Outcome.CANCELLED, "exit_code": None, "started_at": None}),
        (5, {**NEVER_STARTED, "denials": (DENIED,)}),
        (5, {**NEVER_STARTED, "recording_commitment": sha256_digest(b"recording")}),
        (5, {**NEVER_STARTED, **WROTE}),
        (5, {"outcome": Outcome.TRAPPED, "exit_code": None, "trap": "x", **WROTE}),
        (6, {"finished_at": START - timedelta(microseconds=1)}),
        (6, {"started_at": START - timedelta(microseconds=1)}),
        (6, {"received_at": datetime(2026, 1, 1)}),  # noqa: DTZ001 - naive on purpose
        (7, {"type": "https://agentfactory.dev/receipt/v4"}),
        (7, {"type": OLDER_PREDICATE_TYPE, "denials": (DENIED,)}),
        (7, {"type": OLDER_PREDICATE_TYPE, "recording_commitment": sha256_digest(b"recording")}),
        (7, {"type": OLDER_PREDICATE_TYPE, **WROTE}),
        (7, {"type": OLDER_PREDICATE_TYPE, **KILLED, "limit": LimitName.HOST_CALLS}),
        (8, {"denials": (DENIED, DENIED)}),
        (8, {"denials": (replace(DENIED, method="log"), DENIED)}),
        (8, {"denials": (replace(DENIED, count=0),)}),
        (8, {"denials": (replace(DENIED, reason="Two Words"),)}),
        (8, {"denials": tuple(replace(DENIED, method=f"m{n:02}") for n in range(MAX_DENIALS + 1))}),
    ],
)
async def test_receipt_that_contradicts_itself_is_never_signed(check, changes):
    with pytest.raises(ReceiptInvalidError, match=f"check {check}"):
        await signed(a_receipt(**changes))


@pytest.mark.parametrize("name", [name for name in RESOURCE_FIELDS if name not in FIRST_RESOURCES])
def test_receipt_of_version_1_says_nothing_of_resources_that_came_later(name):
    used = ResourcesUsed(**{name: timedelta(microseconds=1) if name in TIMES else 1})
    with pytest.raises(ReceiptInvalidError, match="check 7"):
        encode_receipt(a_receipt(type=OLDER_PREDICATE_TYPE, resources=used))


async def test_receipt_of_version_1_that_says_what_came_later_is_refused_though_well_signed():
    def change(document):
        document["predicateType"] = OLDER_PREDICATE_TYPE
        document["predicate"]["denials"] = [DENIED_JSON]

    with pytest.raises(ReceiptInvalidError, match="check 7"):
        verify(await signed_document(change))


def test_order_of_each_version_is_answered_in_its_own():
    assert predicate_type_for("agentfactory.order.v2") == PREDICATE_TYPE
    assert predicate_type_for("agentfactory.order.v1") == OLDER_PREDICATE_TYPE
    assert predicate_type_for(None) == OLDER_PREDICATE_TYPE


def test_denials_are_merged_and_bounded_and_none_is_lost():
    many = [Denial(method=f"m{n:02}", reason="unknown") for n in range(40)] * 2
    merged = merge_denials([DENIED, DENIED, *many])
    assert len(merged) == MAX_DENIALS
    assert sum(denial.count for denial in merged) == 82
    assert replace(DENIED, count=2) in merged
    assert Denial(method="other", reason="other", count=2 * (40 - 14)) in merged
    encode_receipt(a_receipt(denials=merged))
    assert merge_denials([]) == ()


def test_denials_merged_one_by_one_are_those_merged_together():
    many = [Denial(method=method, reason=f"r{n}") for method in ("secret.ref", "aa") for n in range(10)] * 2
    merged: tuple[Denial, ...] = ()
    for denial in many:
        merged = merge_denials([*merged, denial])
    assert merged == merge_denials(many)
    assert {f"r{n}" for n in range(10)} <= {one.reason for one in merged if one.method == "secret.ref"}


async def test_receipt_is_bounded():
    long = Rejection(check=1, reason=RejectionReason.FORMAT, message="x" * 60_000)
    with pytest.raises(ReceiptInvalidError, match="above 65536"):
        await signed(a_rejection(long))


# --- does it answer the order that was sent? ---


def test_receipt_matches_its_order_and_a_bare_rejection_matches_too():
    receipt = a_receipt()
    check_matches(receipt, expected(receipt))
    check_matches(a_rejection(FORGED), expected(receipt))
    check_matches(a_rejection(FORGED, type=OLDER_PREDICATE_TYPE), expected(receipt))


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        (1, {"installation": "elsewhere"}),
        (1, {"node_id": OTHER_NODE}),
        (1, {"boot_id": ids.new_id(ids.BOOT, FakeClock(), FakeRandom("boot"))}),
        (2, {"order_digest": sha256_digest(b"another")}),
        (4, {"template_digest": sha256_digest(b"another")}),
        (4, {"module_digest": sha256_digest(b"another")}),
        (4, {"input_commitment": sha256_digest(b"another")}),
        (5, {"type": OLDER_PREDICATE_TYPE}),
    ],
)
def test_receipt_that_answers_something_else_is_refused(check, changes):
    receipt = a_receipt()
    with pytest.raises(ReceiptInvalidError, match=f"check {check}"):
        check_matches(replace(receipt, **changes), expected(receipt))


@pytest.mark.parametrize("field", AttemptIdentity.__dataclass_fields__)
def test_receipt_of_another_attempt_is_refused(field):
    receipt = a_receipt()
    value = getattr(receipt.attempt, field)
    other = replace(receipt.attempt, **{field: value + (1 if isinstance(value, int) else "0")})
    with pytest.raises(ReceiptInvalidError, match="check 3"):
        check_matches(replace(receipt, attempt=other), expected(receipt))


async def test_chain_links_each_receipt_to_the_one_before():
    first = a_receipt()
    check_follows(first, last_sequence=0, last_hash=None)
    head = receipt_hash(await signed(first))
    second = a_receipt(sequence=2, previous=head)
    check_follows(second, last_sequence=1, last_hash=head)
    for sequence, last in ((2, head), (0, None)):
        with pytest.raises(ReceiptInvalidError, match="does not follow"):
            check_follows(second, last_sequence=sequence, last_hash=last)
    with pytest.raises(ReceiptInvalidError, match="another predecessor"):
        check_follows(second, last_sequence=1, last_hash=sha256_digest(b"fork"))


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": Outcome.FAILED, "exit_code": "x"},
        {"outcome": Outcome.FAILED, "exit_code": 2**32},
        {"resources": ResourcesUsed(cpu=timedelta(microseconds=-5))},
        {"resources": ResourcesUsed(wall=timedelta(days=10**6))},
        {"resources": ResourcesUsed(peak_memory_bytes=-1)},
        {"resources": ResourcesUsed(output_bytes=2**53)},
    ],
)
def test_node_signs_no_receipt_that_nobody_can_read(changes):
    with pytest.raises(VerificationError):
        encode_readable_receipt(a_receipt(**changes))


def test_receipt_that_can_be_read_is_encoded_like_any_other():
    one = a_receipt()
    assert encode_readable_receipt(one) == encode_receipt(one)


_ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 2**32 - 1, 2**32, 2**53 - 1, 2**53, b"x", (), Outcome.KILLED, "wall_ms"]),
    st.sampled_from([1, 64, 65, 512, 513]).map(lambda length: "x" * length),
    st.text(max_size=3),
    st.sampled_from(
        [NODE, BOOT, NODE.upper(), f"{NODE}\n", ids.new_id(ids.ORDER, FakeClock(), FakeRandom())]
    ),
    st.sampled_from([sha256_digest(b"a"), sha256_digest(b"a").upper(), sha256_digest(b"a") + "\n"]),
    st.sampled_from([timedelta(microseconds=-1), timedelta(days=365), timedelta(days=365, microseconds=1)]),
    st.sampled_from([START, START.astimezone(timezone(timedelta(hours=5))), START.replace(year=1)]),
)
_RECEIPTS = (
    a_receipt(),
    a_receipt(sequence=2, previous=sha256_digest(b"before"), log_commitment=sha256_digest(b"log")),
    a_receipt(outcome=Outcome.FAILED, exit_code=3),
    a_receipt(outcome=Outcome.TRAPPED, exit_code=None, trap="unreachable"),
    a_receipt(outcome=Outcome.KILLED, exit_code=None, limit=LimitName.WALL_MS),
    a_rejection(FORGED),
    a_rejection(FORGED, type=OLDER_PREDICATE_TYPE),
    a_receipt(type=OLDER_PREDICATE_TYPE),
    a_receipt(denials=(DENIED,), resources=EVERYTHING, **WROTE),
)


@st.composite
def receipts_with_one_odd_value(draw) -> ReceiptPredicate:
    receipt = draw(st.sampled_from(_RECEIPTS))
    name = draw(st.sampled_from(sorted(ReceiptPredicate.__dataclass_fields__)))
    part = getattr(receipt, name)
    if name == "denials" and part and draw(st.booleans()):
        inner = draw(st.sampled_from(sorted(Denial.__dataclass_fields__)))
        return replace(receipt, denials=(replace(DENIED, **{inner: draw(_ODD)}),))
    if not is_dataclass(part):
        return replace(receipt, **{name: draw(_ODD)})
    inner = draw(st.sampled_from(sorted(part.__dataclass_fields__)))
    return replace(receipt, **{name: replace(part, **{inner: draw(_ODD)})})


@settings(deadline=None)  # an example that meets a busy machine is no failure; pytest bounds the whole
@given(receipts_with_one_odd_value())
def test_node_signs_a_receipt_if_and_only_if_its_reader_takes_it_for_the_same(receipt):
    # Types that no code of ours makes may fail in other ways than by a refusal; signed they are never.
    try:
        envelope = envelope_by(encode_readable_receipt(receipt))
    except Exception:  # noqa: BLE001 - see above
        envelope = None
    try:
        read = verify_receipt(envelope_by(encode_receipt(receipt)), node_id=NODE, node_key=KEY.public)
    except ReceiptInvalidError as error:
        is_read = "check 6: receipt is by" in str(error)
    except Exception:  # noqa: BLE001 - see above
        is_read = False
    else:
        is_read = read.predicate == receipt
    assert (envelope is not None) == is_read


def envelope_by(payload: bytes) -> bytes:
    made = Signature(key_id=KEY.key_id, key_version=1, value=KEY.sign(pae(IN_TOTO_TYPE, payload)))
    return encode_envelope(envelope_of(IN_TOTO_TYPE, payload, [made]))
