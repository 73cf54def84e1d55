"""The receipt's one encoding and its signature: in-toto Statement v1 as canonical JSON, DSSE by the node."""

import re
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Final, TypeVar

from shared.canonical import MAX_SAFE_INTEGER, JsonObject, canonical_json, parse_canonical
from shared.digests import Digest, digest_to_raw, parse_digest
from shared.dsse import IN_TOTO_TYPE, sign_envelope, verify_envelope
from shared.errors import InvalidInputError, ReceiptInvalidError, RejectionReason
from shared.fields import Fields, time_to_text
from shared.ids import BOOT, EXECUTION, NODE, ORDER, NodeId, parse_id
from shared.outcomes import LimitName, Outcome
from shared.receipts import (
    DENIAL_WORD,
    MAX_DENIALS,
    MAX_DETAIL_CHARS,
    MAX_RECEIPT_ENVELOPE_BYTES,
    PREDICATE_TYPES,
    STATEMENT_TYPE,
    AttemptIdentity,
    Denial,
    EngineIdentity,
    ReceiptPredicate,
    Rejection,
    check_predicate,
    receipt_hash,
)
from shared.resources import check_resources, read_resources, resources_json
from shared.signatures import Algorithm, PublicKey, Signer

_MAX_EXIT_CODE: Final = 2**32 - 1
_HEX: Final = re.compile(r"[0-9a-f]{64}")

_ENGINE_FIELDS: Final = tuple(one.name for one in fields(EngineIdentity))
_ATTEMPT_FIELDS: Final = tuple(one.name for one in fields(AttemptIdentity))
_REJECTION_FIELDS: Final = tuple(one.name for one in fields(Rejection))
_DENIAL_FIELDS: Final = tuple(one.name for one in fields(Denial))

_Word = TypeVar("_Word", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReceipt:
    """A receipt that its node signed, with the bytes that are stored as evidence."""

    predicate: ReceiptPredicate
    hash: Digest
    """What the node's next receipt must name as its predecessor."""
    envelope: bytes = field(repr=False)


def encode_receipt(predicate: ReceiptPredicate) -> bytes:
    """Return the canonical in-toto statement that the node signs. Its subject is the order.

    Raises:
        ReceiptInvalidError: The predicate contradicts itself (`check_predicate`).
    """
    check_predicate(predicate)
    return _encode_statement(predicate, _encode_predicate(predicate))


def encode_readable_receipt(predicate: ReceiptPredicate) -> bytes:
    """Like `encode_receipt`, and what comes out is what `verify_receipt` takes.

    For the node itself: a receipt that it signed and nobody can read would stop its chain for good.

    Raises:
        VerificationError: The predicate contradicts itself, or a field of it is of another type than it says,
            out of range or malformed.
    """
    check_predicate(predicate)
    _check_readable(predicate)
    return _encode_statement(predicate, _encode_predicate(predicate))


def _encode_statement(predicate: ReceiptPredicate, encoded: JsonObject) -> bytes:
    name = predicate.attempt.order_id if predicate.attempt is not None else "order"
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest_to_raw(predicate.order_digest).hex()}}],
            "predicateType": predicate.type,
            "predicate": encoded,
        }
    )


async def sign_receipt(predicate: ReceiptPredicate, signer: Signer) -> bytes:
    """Return the DSSE envelope of a receipt, signed with the node's receipt key.

    Raises:
        ReceiptInvalidError: The predicate contradicts itself, or is too large.
    """
    envelope = await sign_envelope(IN_TOTO_TYPE, encode_receipt(predicate), [signer])
    if len(envelope) > MAX_RECEIPT_ENVELOPE_BYTES:
        raise ReceiptInvalidError(f"receipt has {len(envelope)} bytes, above {MAX_RECEIPT_ENVELOPE_BYTES}")
    return envelope


def verify_receipt(envelope: bytes, *, node_id: NodeId, node_key: PublicKey) -> VerifiedReceipt:
    """Return the receipt if, and only if, every check passes.

    1. The node's enrolled key, an Ed25519 key, signed the exact bytes (`verify_envelope`).
    2. They are a canonical in-toto Statement v1 with our predicate type, without unknown fields.
    3. Every field of the predicate is well formed.
    4. The predicate does not contradict itself (`check_predicate`).
    5. The statement's one subject is the order that the predicate names.
    6. It is by this node.

    Whether it answers the order that was sent is `check_matches`, whether it is next in the chain
    `check_follows`.

    Raises:
        VerificationError: Check 1, with the class of `verify_envelope`; check 2, as UnknownFieldError.
        ReceiptInvalidError: Checks 2 to 6.
    """
    if node_key.algorithm is not Algorithm.ED25519:
        raise ReceiptInvalidError(f"check 1: receipt key {node_key.key_id} is {node_key.algorithm}")
    verified = verify_envelope(
        envelope,
        payload_type=IN_TOTO_TYPE,
        keys={node_key.key_id: node_key},
        max_bytes=MAX_RECEIPT_ENVELOPE_BYTES,
    )
    statement = Fields(parse_canonical(verified.payload), "receipt", error=ReceiptInvalidError)
    types = (statement.text("_type"), statement.text("predicateType"))
    if types[0] != STATEMENT_TYPE or types[1] not in PREDICATE_TYPES:
        raise ReceiptInvalidError(f"check 2: statement types are {types[0][:80]!r} and {types[1][:80]!r}")
    subjects = statement.children("subject", max_items=1)
    predicate = _decode_predicate(statement.child("predicate"), types[1])
    statement.end()
    check_predicate(predicate)
    if [_subject_digest(subject) for subject in subjects] != [predicate.order_digest]:
        raise ReceiptInvalidError("check 5: the statement's subject is not the order")
    if predicate.node_id != node_id:
        raise ReceiptInvalidError(f"check 6: receipt is by {predicate.node_id}, expected {node_id}")
    return VerifiedReceipt(predicate=predicate, hash=receipt_hash(envelope), envelope=envelope)


def _subject_digest(subject: Fields) -> Digest:
    subject.text("name", max_chars=64)
    digests = subject.child("digest")
    value = digests.pattern("sha256", _HEX, "64 hex digits")
    digests.end()
    subject.end()
    return Digest(f"sha256:{value}")


def _check_readable(predicate: ReceiptPredicate) -> None:
    """Refuse what `_decode_predicate` would refuse or read differently, without encoding anything."""
    attempt, engine, rejection = predicate.attempt, predicate.engine, predicate.rejection
    try:
        _require_text("installation", predicate.installation, 64)
        parse_id(NODE, predicate.node_id)
        parse_id(BOOT, predicate.boot_id)
        _require_integer("sequence", predicate.sequence, 1)
        parse_digest(predicate.order_digest)
        for digest in (
            predicate.previous,
            predicate.template_digest,
            predicate.module_digest,
            predicate.input_commitment,
            predicate.output_commitment,
            predicate.log_commitment,
            predicate.recording_commitment,
            predicate.kv_writes_digest,
        ):
            if digest is not None:
                parse_digest(digest)
        if attempt is not None:
            parse_id(ORDER, attempt.order_id)
            parse_id(EXECUTION, attempt.execution_id)
            _require_integer("attempt_number", attempt.attempt_number, 1)
            _require_integer("fencing_token", attempt.fencing_token, 1)
        if engine is not None:
            _require_text("engine.name", engine.name, 64)
            _require_text("engine.version", engine.version, 64)
            parse_digest(engine.config_digest)
        if rejection is not None:
            _require_integer("rejection.check", rejection.check, 0, 99)
            RejectionReason(rejection.reason)
            _require_text("rejection.message", rejection.message, MAX_DETAIL_CHARS)
        if predicate.exit_code is not None:
            _require_integer("exit_code", predicate.exit_code, 0, _MAX_EXIT_CODE)
        if predicate.limit is not None:
            LimitName(predicate.limit)
        if predicate.trap is not None:
            _require_text("trap", predicate.trap, MAX_DETAIL_CHARS)
        check_resources(predicate.resources)
    except (InvalidInputError, ValueError, TypeError) as error:
        raise ReceiptInvalidError(f"the receipt could not be read: {error}") from error


def _require_text(name: str, value: object, max_chars: int) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= max_chars:
        raise InvalidInputError(f"field {name!r} is not a string of 1 to {max_chars} characters")


def _require_integer(name: str, value: object, minimum: int = 0, maximum: int = MAX_SAFE_INTEGER) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise InvalidInputError(f"field {name!r} is not an integer from {minimum} to {maximum}")


def _encode_predicate(predicate: ReceiptPredicate) -> JsonObject:
    started = predicate.started_at
    encoded: JsonObject = {
        "installation": predicate.installation,
        "node_id": predicate.node_id,
        "boot_id": predicate.boot_id,
        "sequence": predicate.sequence,
        "previous": predicate.previous,
        "order_digest": predicate.order_digest,
        "template_digest": predicate.template_digest,
        "module_digest": predicate.module_digest,
        "input_commitment": predicate.input_commitment,
        "output_commitment": predicate.output_commitment,
        "log_commitment": predicate.log_commitment,
        "recording_commitment": predicate.recording_commitment,
        "kv_writes_digest": predicate.kv_writes_digest,
        "denials": [_record(denial, _DENIAL_FIELDS) for denial in predicate.denials] or None,
        "outcome": predicate.outcome,
        "exit_code": predicate.exit_code,
        "limit": predicate.limit,
        "trap": predicate.trap,
        "resources": resources_json(predicate.resources),
        "engine": _record(predicate.engine, _ENGINE_FIELDS),
        "attempt": _record(predicate.attempt, _ATTEMPT_FIELDS),
        "rejection": _record(predicate.rejection, _REJECTION_FIELDS),
        "received_at": time_to_text(predicate.received_at),
        "started_at": None if started is None else time_to_text(started),
        "finished_at": time_to_text(predicate.finished_at),
    }
    return {name: value for name, value in encoded.items() if value is not None}


def _record(
    value: EngineIdentity | AttemptIdentity | Rejection | Denial | None, names: tuple[str, ...]
) -> JsonObject | None:
    return None if value is None else {name: getattr(value, name) for name in names}


def _decode_predicate(said: Fields, predicate_type: str) -> ReceiptPredicate:
    def digest(name: str) -> Digest | None:
        return said.digest(name) if said.has(name) else None

    def child(name: str) -> Fields | None:
        return said.child(name) if said.has(name) else None

    try:
        predicate = ReceiptPredicate(
            type=predicate_type,
            installation=said.text("installation", max_chars=64),
            node_id=parse_id(NODE, said.text("node_id")),
            boot_id=parse_id(BOOT, said.text("boot_id")),
            sequence=said.integer("sequence", minimum=1),
            previous=digest("previous"),
            order_digest=said.digest("order_digest"),
            attempt=_decode_attempt(child("attempt")),
            template_digest=digest("template_digest"),
            module_digest=digest("module_digest"),
            input_commitment=digest("input_commitment"),
            output_commitment=digest("output_commitment"),
            log_commitment=digest("log_commitment"),
            recording_commitment=digest("recording_commitment"),
            kv_writes_digest=digest("kv_writes_digest"),
            denials=_decode_denials(said),
            outcome=_word(said, "outcome", Outcome),
            exit_code=said.integer("exit_code", maximum=_MAX_EXIT_CODE) if said.has("exit_code") else None,
            limit=_word(said, "limit", LimitName) if said.has("limit") else None,
            trap=said.text("trap", max_chars=MAX_DETAIL_CHARS) if said.has("trap") else None,
            rejection=_decode_rejection(child("rejection")),
            resources=read_resources(said.child("resources")),
            engine=_decode_engine(child("engine")),
            received_at=said.time("received_at"),
            started_at=said.time("started_at") if said.has("started_at") else None,
            finished_at=said.time("finished_at"),
        )
    except InvalidInputError as error:
        raise ReceiptInvalidError(f"check 3: {error}") from error
    said.end()
    return predicate


def _decode_attempt(said: Fields | None) -> AttemptIdentity | None:
    if said is None:
        return None
    attempt = AttemptIdentity(
        order_id=parse_id(ORDER, said.text("order_id")),
        execution_id=parse_id(EXECUTION, said.text("execution_id")),
        attempt_number=said.integer("attempt_number", minimum=1),
        fencing_token=said.integer("fencing_token", minimum=1),
    )
    said.end()
    return attempt


def _decode_rejection(said: Fields | None) -> Rejection | None:
    if said is None:
        return None
    rejection = Rejection(
        check=said.integer("check", maximum=99),
        reason=_word(said, "reason", RejectionReason),
        message=said.text("message", max_chars=MAX_DETAIL_CHARS),
    )
    said.end()
    return rejection


def _decode_engine(said: Fields | None) -> EngineIdentity | None:
    if said is None:
        return None
    engine = EngineIdentity(
        name=said.text("name", max_chars=64),
        version=said.text("version", max_chars=64),
        config_digest=said.digest("config_digest"),
    )
    said.end()
    return engine


def _decode_denials(said: Fields) -> tuple[Denial, ...]:
    if not said.has("denials"):
        return ()
    entries = said.children("denials", max_items=MAX_DENIALS)
    if not entries:
        raise said.invalid("denials", "is empty, which is said by leaving it out")
    denials = tuple(
        Denial(
            method=entry.pattern("method", DENIAL_WORD, "the name of a method"),
            reason=entry.pattern("reason", DENIAL_WORD, "a word"),
            count=entry.integer("count", minimum=1),
        )
        for entry in entries
    )
    for entry in entries:
        entry.end()
    return denials


def _word(said: Fields, name: str, words: type[_Word]) -> _Word:
    value = said.text(name, max_chars=64)
    try:
        return words(value)
    except ValueError as error:
        raise ReceiptInvalidError(f"check 3: field {name!r} is {value!r}, which is not known") from error
