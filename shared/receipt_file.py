"""The receipt file: all that proves one execution, as one canonical JSON document that travels. Pure.

Owns the file's form. Believes nothing of what is in it: that is `shared.verification`'s. The specification,
for who writes it again in another language, is docs/specs/receipt.md.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Final

from shared.canonical import JsonObject, canonical_json, parse_canonical
from shared.checkpoints import MAX_NOTE_BYTES
from shared.decisions import DecisionResult, decision_digest, read_result, result_json
from shared.digests import Digest, sha256_digest
from shared.dsse import MAX_ENVELOPE_BYTES
from shared.errors import InvalidInputError, KeyFormatError, MalformedError, UnsupportedVersionError
from shared.fields import Fields, time_to_text
from shared.ids import AUDIT_ENTRY, DECISION, RECEIPT, AuditEntryId, DecisionId, KeyId, ReceiptId, parse_id
from shared.manifest import MAX_ANCESTORS
from shared.merkle import HASH_BYTES, MAX_BATCH_LEAVES, MAX_TREE_SIZE
from shared.orders import MAX_BATCH_ENVELOPE_BYTES, MAX_ORDER_BYTES
from shared.receipts import MAX_RECEIPT_ENVELOPE_BYTES
from shared.signatures import MAX_PEM_BYTES, PublicKey

FORMAT: Final = "agentfactory.receipt-file.v1"
MAX_FILE_BYTES: Final = 8 * 1024 * 1024
MAX_KEYS: Final = 64
MAX_PATH: Final = 63
"""Hashes on the way to the root of the largest tree."""
MAX_DETAILS_CHARS: Final = 64 * 1024
MAX_FACT_CHARS: Final = 1024

_BASE64_BLOCK: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledOrder:
    """The order and its place in the batch whose root was signed."""

    content: bytes = field(repr=False)
    """The exact leaf."""
    batch: bytes = field(repr=False)
    """DSSE envelope of the batch's root."""
    index: int
    path: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledDecision:
    """What policy was asked and said, so that anybody with the bundle can ask it again."""

    decision_id: DecisionId
    question: str
    policy_digest: Digest
    """Of the bundle that answered."""
    input: bytes = field(repr=False)
    """Canonical JSON of what was asked."""
    result: DecisionResult

    @property
    def digest(self) -> Digest:
        """What the audit entry of the submission names."""
        return decision_digest(
            decision_id=self.decision_id,
            question=self.question,
            policy_digest=self.policy_digest,
            input_digest=sha256_digest(self.input),
            result_digest=self.result.digest(self.question),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledLeaf:
    """A leaf of the log and its way to the root of the file's checkpoint."""

    index: int
    salt: bytes = field(repr=False)
    path: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledEntry:
    """An audit entry, as it is in the log."""

    audit_entry_id: AuditEntryId
    tenant_id: str
    actor: str
    action: str
    subject: str
    result: str
    recorded_at: datetime
    details: str
    """JSON of an object, exactly as it was logged."""
    leaf: FiledLeaf


_ENTRY_TEXTS: Final = tuple(one.name for one in fields(FiledEntry) if one.name not in {"recorded_at", "leaf"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledLog:
    """What the transparency log says of the execution, all of it under one checkpoint."""

    checkpoint: bytes = field(repr=False)
    """Signed note, with the log's signature and those of witnesses."""
    receipt: FiledLeaf
    submission: FiledEntry | None
    """That the execution was accepted, by which decision."""
    enrollment: FiledEntry | None
    """That the node was admitted, with which receipt key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptFile:
    """One receipt with all that proves it. Not verified."""

    receipt_id: ReceiptId
    keyset: bytes = field(repr=False)
    """DSSE envelope of the root-signed keyset, which says what which key may sign, and when."""
    order: FiledOrder
    templates: tuple[bytes, ...] = field(repr=False)
    """DSSE envelopes: that of the template, then of those that it extends, the nearest first."""
    decision: FiledDecision
    receipt: bytes = field(repr=False)
    """DSSE envelope."""
    node_key_id: KeyId
    """Which of the keys is the node's, that signed the receipt."""
    log: FiledLog | None
    """None: no checkpoint covered the receipt when the file was made."""
    keys: Mapping[KeyId, PublicKey]
    """Every key that signed something in here, but witnesses', by fingerprint."""


def encode_receipt_file(file: ReceiptFile) -> bytes:
    """Return the file's only encoding: RFC 8785, and a line break for those who print it.

    Raises:
        InvalidInputError: Something in it has no such form.
    """
    document: JsonObject = {
        "type": FORMAT,
        "receipt_id": file.receipt_id,
        "keyset": _text(file.keyset),
        "order": {
            "content": _base64(file.order.content),
            "batch": _text(file.order.batch),
            "index": file.order.index,
            "path": [_base64(one) for one in file.order.path],
        },
        "templates": [_text(one) for one in file.templates],
        "decision": _decision_json(file.decision),
        "receipt": _text(file.receipt),
        "node_key_id": file.node_key_id,
        "keys": {key_id: key.to_pem().decode("ascii") for key_id, key in file.keys.items()},
    }
    if file.log is not None:
        document["log"] = _log_json(file.log)
    return canonical_json(document) + b"\n"


def parse_receipt_file(data: bytes) -> ReceiptFile:
    """Return what a file says, verifying nothing.

    1. At most 8 MiB, ending in one line break, and before it one canonical JSON object (RFC 8785).
    2. Of this format's version.
    3. Every field present, well formed and within its bound; no other field, at any depth.
    4. Every key is named by its own fingerprint.

    Raises:
        MalformedError: Check 1, 3 or 4.
        UnsupportedVersionError: Check 2.
        UnknownFieldError: Check 3.
    """
    if not data.endswith(b"\n"):
        raise MalformedError("the receipt file does not end in a line break: is it cut off?")
    said = Fields(parse_canonical(data[:-1], max_bytes=MAX_FILE_BYTES), "receipt file")
    if (found := said.text("type")) != FORMAT:
        raise UnsupportedVersionError(f"the file is of format {found[:64]!r}, this build reads {FORMAT!r}")
    try:
        file = ReceiptFile(
            receipt_id=parse_id(RECEIPT, said.text("receipt_id")),
            keyset=_envelope(said, "keyset"),
            order=_read_order(said.child("order")),
            templates=_read_templates(said),
            decision=_read_decision(said.child("decision")),
            receipt=_envelope(said, "receipt", MAX_RECEIPT_ENVELOPE_BYTES),
            node_key_id=KeyId(said.digest("node_key_id")),
            log=_read_log(said.child("log")) if said.has("log") else None,
            keys=_read_keys(said.raw_object("keys")),
        )
    except InvalidInputError as error:
        raise MalformedError(f"receipt file: {error}") from error
    said.end()
    return file


def keys_by_id(keys: Sequence[PublicKey]) -> dict[KeyId, PublicKey]:
    """Return keys as a file holds them."""
    return {key.key_id: key for key in keys}


def _decision_json(decision: FiledDecision) -> JsonObject:
    return {
        "decision_id": decision.decision_id,
        "question": decision.question,
        "policy_digest": decision.policy_digest,
        "input": parse_canonical(decision.input),
        "result": result_json(decision.result, decision.question),
    }


def _log_json(log: FiledLog) -> JsonObject:
    entries = {"submission": log.submission, "enrollment": log.enrollment}
    return {
        "checkpoint": _text(log.checkpoint),
        "receipt": _leaf_json(log.receipt),
        **{name: _entry_json(entry) for name, entry in entries.items() if entry is not None},
    }


def _leaf_json(leaf: FiledLeaf) -> JsonObject:
    return {
        "index": str(leaf.index),
        "salt": _base64(leaf.salt),
        "path": [_base64(one) for one in leaf.path],
    }


def _entry_json(entry: FiledEntry) -> JsonObject:
    said = {name: getattr(entry, name) for name in _ENTRY_TEXTS}
    return {**said, "recorded_at": time_to_text(entry.recorded_at), "leaf": _leaf_json(entry.leaf)}


def _read_order(said: Fields) -> FiledOrder:
    order = FiledOrder(
        content=_bytes(said, "content", MAX_ORDER_BYTES),
        batch=_envelope(said, "batch", MAX_BATCH_ENVELOPE_BYTES),
        index=said.integer("index", maximum=MAX_BATCH_LEAVES - 1),
        path=_path(said),
    )
    said.end()
    return order


def _read_templates(said: Fields) -> tuple[bytes, ...]:
    texts = said.texts("templates", max_items=1 + MAX_ANCESTORS, max_chars=MAX_ENVELOPE_BYTES)
    if not texts:
        raise said.invalid("templates", "is empty")
    return tuple(text.encode() for text in texts)


def _read_decision(said: Fields) -> FiledDecision:
    question = said.text("question", max_chars=64)
    decision = FiledDecision(
        decision_id=parse_id(DECISION, said.text("decision_id")),
        question=question,
        policy_digest=said.digest("policy_digest"),
        input=canonical_json(said.raw_object("input")),
        result=read_result(said.child("result"), question),
    )
    said.end()
    return decision


def _read_log(said: Fields) -> FiledLog:
    log = FiledLog(
        checkpoint=_envelope(said, "checkpoint", MAX_NOTE_BYTES),
        receipt=_read_leaf(said.child("receipt")),
        submission=_read_entry(said.child("submission")) if said.has("submission") else None,
        enrollment=_read_entry(said.child("enrollment")) if said.has("enrollment") else None,
    )
    said.end()
    return log


def _read_leaf(said: Fields) -> FiledLeaf:
    index = said.text("index", max_chars=len(str(MAX_TREE_SIZE)))
    # As text: places go up to 2^63. One form each, so no leading zero, sign or foreign digit.
    if not index.isascii() or not index.isdigit() or str(int(index)) != index:
        raise said.invalid("index", "is not a whole number in digits")
    leaf = FiledLeaf(index=int(index), salt=_bytes(said, "salt", HASH_BYTES), path=_path(said))
    said.end()
    return leaf


def _read_entry(said: Fields) -> FiledEntry:
    entry = FiledEntry(
        audit_entry_id=parse_id(AUDIT_ENTRY, said.text("audit_entry_id")),
        tenant_id=said.text("tenant_id", max_chars=MAX_FACT_CHARS),
        actor=said.text("actor", max_chars=MAX_FACT_CHARS),
        action=said.text("action", max_chars=MAX_FACT_CHARS),
        subject=said.text("subject", max_chars=MAX_FACT_CHARS),
        result=said.text("result", max_chars=MAX_FACT_CHARS),
        recorded_at=said.time("recorded_at"),
        details=said.text("details", max_chars=MAX_DETAILS_CHARS),
        leaf=_read_leaf(said.child("leaf")),
    )
    said.end()
    return entry


def _read_keys(said: JsonObject) -> dict[KeyId, PublicKey]:
    if len(said) > MAX_KEYS:
        raise MalformedError(f"receipt file has {len(said)} keys, at most {MAX_KEYS} are possible")
    keys = {KeyId(key_id): _read_key(key_id, pem) for key_id, pem in said.items()}
    for key_id, key in keys.items():
        if key.key_id != key_id:
            raise MalformedError(f"the key filed as {key_id[:80]!r} is {key.key_id}")
    return keys


def _read_key(key_id: str, pem: object) -> PublicKey:
    if not isinstance(pem, str) or len(pem) > MAX_PEM_BYTES:
        raise MalformedError(f"the key filed as {key_id[:80]!r} is no short text")
    try:
        key = PublicKey.from_pem(pem.encode())
    except (KeyFormatError, UnicodeEncodeError) as error:
        raise MalformedError(f"the key filed as {key_id[:80]!r}: {error}") from error
    if key.to_pem().decode("ascii") != pem:
        raise MalformedError(f"the key filed as {key_id[:80]!r} is not in its one form of PEM")
    return key


def _envelope(said: Fields, name: str, max_bytes: int = MAX_ENVELOPE_BYTES) -> bytes:
    return said.text(name, max_chars=max_bytes).encode()


def _path(said: Fields) -> tuple[bytes, ...]:
    hashes = said.texts("path", max_items=MAX_PATH, max_chars=2 * HASH_BYTES)
    return tuple(_decoded(said, "path", text) for text in hashes)


def _bytes(said: Fields, name: str, max_bytes: int) -> bytes:
    return _decoded(said, name, said.text(name, max_chars=_BASE64_BLOCK * max_bytes))


def _decoded(said: Fields, name: str, text: str) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise said.invalid(name, "is not base64") from error
    if _base64(value) != text:
        raise said.invalid(name, "is not base64 as it is written")
    return value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError("a signed envelope or note is not text") from error
