"""Whole receipt files with fixed keys and times, to change one thing in before or after they are signed."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Final

from shared import ids
from shared.canonical import canonical_json
from shared.checkpoints import (
    COSIGNATURE,
    ED25519,
    Checkpoint,
    NoteSignature,
    SignedCheckpoint,
    VerifierKey,
    cosigned_text,
    key_id,
    log_origin,
)
from shared.decisions import EXECUTE, DecisionResult
from shared.digests import sha256_digest
from shared.dsse import (
    IN_TOTO_TYPE,
    KEYSET_TYPE,
    ORDERS_TYPE,
    TEMPLATE_TYPE,
    encode_envelope,
    envelope_of,
    pae,
)
from shared.keyset import KeyPurpose, Keyset, KeysetEntry, encode_keyset
from shared.limits import Limits, RequestedLimits, requested_json
from shared.log_leaf import LeafKind, audit_content, commitment
from shared.manifest import (
    Ancestor,
    Capabilities,
    HttpCapability,
    Manifest,
    ModuleFile,
    Profile,
    capabilities_json,
    encode_manifest,
)
from shared.merkle import inclusion_path, leaf_hash, root_hash
from shared.order_codec import encode_order
from shared.orders import Order, plan_batch
from shared.outcomes import Outcome
from shared.receipt_codec import encode_receipt
from shared.receipt_file import (
    FiledDecision,
    FiledEntry,
    FiledLeaf,
    FiledLog,
    FiledOrder,
    ReceiptFile,
    keys_by_id,
)
from shared.receipts import AttemptIdentity, Denial, EngineIdentity, ReceiptPredicate
from shared.resources import ResourcesUsed
from shared.signatures import PrivateKey, Signature
from shared.verification.trust import ReceiptTrust
from tests.fakes.clock import START, FakeClock, FakeRandom
from tests.fixtures.keys import ed25519_key

INSTALLATION: Final = "local"
KEYS: Final = Path(__file__).resolve().parents[1] / "vectors" / "receipt" / "keys"
MODULE: Final = b"\x00asm\x01\x00\x00\x00" + bytes(range(200))
HTTP: Final = HttpCapability(method="GET", url="https://api.example.test/v1/")
ROOT, LOG_KEY, NODE_KEY = ed25519_key("root"), ed25519_key("log"), ed25519_key("node")
WITNESSES: Final = {name: ed25519_key(name) for name in ("one.example", "two.example")}
LEAVES_BEFORE, LEAVES_BETWEEN, LEAVES_AFTER = 5, 2, 4


@cache
def rsa(name: str) -> PrivateKey:
    """One of the committed RSA keys: order, publisher, foreign."""
    return PrivateKey.from_pem((KEYS / f"{name}.pem").read_bytes())


def sealed(payload_type: str, payload: bytes, *keys: PrivateKey) -> bytes:
    """Return the DSSE envelope, signed at once."""
    to_sign = pae(payload_type, payload)
    signatures = [Signature(key_id=key.key_id, key_version=1, value=key.sign(to_sign)) for key in keys]
    return encode_envelope(envelope_of(payload_type, payload, signatures))


@dataclass(slots=True)
class Scene:
    """What a receipt file is made of. Change it, then `file()` signs whatever it has become."""

    manifest: Manifest
    parents: tuple[Manifest, ...]
    order: Order
    receipt: ReceiptPredicate
    input: dict
    result: DecisionResult
    keyset: Keyset
    enrolled_key: PrivateKey = NODE_KEY
    node_key: PrivateKey = NODE_KEY
    root_key: PrivateKey = ROOT
    order_key: PrivateKey = field(default_factory=lambda: rsa("order"))
    publisher: PrivateKey = field(default_factory=lambda: rsa("publisher"))
    log_key: PrivateKey = LOG_KEY
    origin: str = log_origin(INSTALLATION, 1)
    witnesses: dict[str, PrivateKey] = field(default_factory=dict)
    logged: Callable[[FiledDecision], FiledDecision] = lambda decision: decision
    """What the log says was decided, given what the file says."""

    def file(self) -> ReceiptFile:
        order = encode_order(self.order)
        others = [encode_order(replace(self.order, nonce=bytes([n]) * 16)) for n in (1, 2)]
        leaves = [others[0], order, others[1]]
        batch = plan_batch(leaves, installation=INSTALLATION, epoch=1, issued_at=START)
        attempt = AttemptIdentity(
            order_id=self.order.id,
            execution_id=self.order.execution_id,
            attempt_number=self.order.attempt_number,
            fencing_token=self.order.fencing_token,
        )
        receipt = self.receipt
        if receipt.order_digest == sha256_digest(b"order"):
            receipt = replace(receipt, order_digest=sha256_digest(order), attempt=attempt)
        decision = FiledDecision(
            decision_id=self.order.decision_id,
            question=EXECUTE,
            policy_digest=self.order.policy_digest,
            input=canonical_json(self.input),
            result=self.result,
        )
        envelope = sealed(IN_TOTO_TYPE, encode_receipt(receipt), self.node_key)
        receipt_id = ids.parse_id(ids.RECEIPT, "rcp_" + self.order.id.removeprefix("ord_"))
        return ReceiptFile(
            receipt_id=receipt_id,
            keyset=sealed(KEYSET_TYPE, encode_keyset(self.keyset), self.root_key),
            order=FiledOrder(
                content=order,
                batch=sealed(ORDERS_TYPE, batch.payload, self.order_key),
                index=1,
                path=batch.paths[1],
            ),
            templates=tuple(
                sealed(TEMPLATE_TYPE, encode_manifest(one), self.publisher)
                for one in (self.manifest, *self.parents)
            ),
            decision=decision,
            receipt=envelope,
            node_key_id=self.node_key.key_id,
            log=self._log(receipt_id, envelope, self.logged(decision)),
            keys=keys_by_id(
                [key.public for key in (self.order_key, self.publisher, self.node_key, self.log_key)]
            ),
        )

    def _log(self, receipt_id: str, envelope: bytes, decision: FiledDecision) -> FiledLog:
        order = self.order
        submission = self._entry(
            "execution.submitted",
            order.execution_id,
            actor=order.caller,
            details={
                "agent": order.agent_name,
                "template_digest": order.template_digest,
                "input_commitment": order.input_commitment,
                "decision_id": order.decision_id,
                "decision_digest": decision.digest,
            },
        )
        enrollment = self._entry(
            "node.enrolled",
            order.node_id,
            actor="token:0123456789abcdef",
            details={"receipt_key_id": self.enrolled_key.key_id, "certificate_serial": "1f"},
        )
        return self._logged(receipt_id, envelope, submission, enrollment)

    def _entry(self, action: str, subject: str, *, actor: str, details: dict) -> FiledEntry:
        made = FakeRandom(f"{action} {subject}")
        return FiledEntry(
            audit_entry_id=ids.new_id(ids.AUDIT_ENTRY, FakeClock(), made),
            tenant_id=self.order.tenant_id,
            actor=actor,
            action=action,
            subject=subject,
            result="ok",
            recorded_at=START,
            details=json.dumps(details),
            leaf=FiledLeaf(index=0, salt=made.token_bytes(16), path=()),
        )

    def _logged(
        self, receipt_id: str, envelope: bytes, submission: FiledEntry, enrollment: FiledEntry
    ) -> FiledLog:
        random = FakeRandom(receipt_id)
        salt = random.token_bytes(16)
        content = bytes.fromhex(sha256_digest(envelope).removeprefix("sha256:"))
        own = [
            entry_leaf(enrollment),
            entry_leaf(submission),
            commitment(kind=LeafKind.RECEIPT, subject=receipt_id, salt=salt, content=content),
        ]
        others = [random.token_bytes(32) for _ in range(LEAVES_BEFORE + LEAVES_BETWEEN + LEAVES_AFTER)]
        between = LEAVES_BEFORE + LEAVES_BETWEEN
        data = [
            own[0],
            *others[:LEAVES_BEFORE],
            own[1],
            *others[LEAVES_BEFORE:between],
            own[2],
            *others[between:],
        ]
        hashes = [leaf_hash(one) for one in data]
        places = [data.index(one) for one in own]
        leaves = [
            FiledLeaf(index=place, salt=one, path=inclusion_path(hashes, place))
            for place, one in zip(places, (enrollment.leaf.salt, submission.leaf.salt, salt), strict=True)
        ]
        checkpoint = Checkpoint(origin=self.origin, size=len(data), root=root_hash(hashes))
        return FiledLog(
            checkpoint=self.note(checkpoint),
            receipt=leaves[2],
            submission=replace(submission, leaf=leaves[1]),
            enrollment=replace(enrollment, leaf=leaves[0]),
        )

    def note(self, checkpoint: Checkpoint) -> bytes:
        """Return the checkpoint with the log's signature and the witnesses'."""
        lines = [
            NoteSignature(
                name=self.origin,
                key_id=key_id(self.origin, self.log_key.public),
                signature=self.log_key.sign(checkpoint.text.encode()),
            )
        ]
        at = int(START.timestamp())
        for name, key in self.witnesses.items():
            signature = struct.pack(">Q", at) + key.sign(cosigned_text(checkpoint, at))
            named = key_id(name, WITNESSES[name].public, COSIGNATURE)
            lines.append(NoteSignature(name=name, key_id=named, signature=signature))
        return SignedCheckpoint(checkpoint=checkpoint, signatures=tuple(lines)).note


def entry_leaf(entry: FiledEntry) -> bytes:
    """Return what the log holds of an audit entry."""
    content = audit_content(
        audit_entry_id=entry.audit_entry_id,
        tenant_id=entry.tenant_id,
        actor=entry.actor,
        action=entry.action,
        subject=entry.subject,
        result=entry.result,
        recorded_at=entry.recorded_at,
        details=entry.details,
    )
    return commitment(
        kind=LeafKind.AUDIT_ENTRY, subject=entry.audit_entry_id, salt=entry.leaf.salt, content=content
    )


def trust(**changes: object) -> ReceiptTrust:
    """Trust the fixed root, the log and both witnesses, of whom none need have cosigned."""
    whole = ReceiptTrust(
        installation=INSTALLATION,
        root_keys=(ROOT.public,),
        logs=(VerifierKey(name=log_origin(INSTALLATION, 1), kind=ED25519, public=LOG_KEY.public),),
        witnesses=tuple(
            VerifierKey(name=name, kind=COSIGNATURE, public=key.public) for name, key in WITNESSES.items()
        ),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def a_keyset(*extra: KeysetEntry) -> Keyset:
    """Order, publisher and log key, valid around the time of the orders."""
    before, after = START - timedelta(hours=1), START + timedelta(days=90)
    listed = {
        KeyPurpose.ORDER: rsa("order"),
        KeyPurpose.PUBLISHER: rsa("publisher"),
        KeyPurpose.LOG: LOG_KEY,
    }
    entries = [
        KeysetEntry(purpose=purpose, key=key.public, not_before=before, not_after=after)
        for purpose, key in listed.items()
    ]
    return Keyset(
        version=3,
        installation=INSTALLATION,
        epoch=1,
        root_key_id=ROOT.key_id,
        issued_at=before,
        entries=(*entries, *extra),
    )


def succeeded() -> Scene:
    """A deterministic run that succeeded."""
    return _scene("succeeded", _manifest(profile=Profile.DETERMINISTIC))


def trapped() -> Scene:
    """A run that trapped."""
    scene = _scene("trapped", _manifest(limits=RequestedLimits(wall_ms=50)))
    scene.receipt = replace(
        scene.receipt,
        outcome=Outcome.TRAPPED,
        trap="unreachable",
        exit_code=None,
        output_commitment=None,
        sequence=2,
        previous=sha256_digest(b"the first"),
    )
    return scene


def calling() -> Scene:
    """A run of a template that extends another, with host calls, of which some were denied; cosigned twice."""
    can = Capabilities(http=(HTTP,), kv=True, record_host_calls=True)
    parent = _manifest(name="base", capabilities=can)
    line = (Ancestor(name=parent.full_name, digest=sha256_digest(encode_manifest(parent))),)
    scene = _scene("calling", _manifest(capabilities=can, extends=line), (parent,))
    scene.receipt = replace(
        scene.receipt,
        recording_commitment=sha256_digest(b"recording"),
        kv_writes_digest=sha256_digest(b"writes"),
        denials=(Denial(method="http.fetch", reason="not_allowed", count=2),),
    )
    scene.witnesses = dict(WITNESSES)
    return scene


def _manifest(**changes: object) -> Manifest:
    manifest = Manifest(
        name="redact",
        version="1.2.0",
        media_type="application/json",
        module=ModuleFile(file_name="redact.wasm", digest=sha256_digest(MODULE), size_bytes=len(MODULE)),
    )
    return replace(manifest, **changes)  # type: ignore[arg-type]


def _scene(seed: str, manifest: Manifest, parents: tuple[Manifest, ...] = ()) -> Scene:
    order = _order(seed, manifest)
    return Scene(
        manifest=manifest,
        parents=parents,
        order=order,
        receipt=_receipt(order),
        input=_input(order, manifest),
        result=DecisionResult(allowed=True, reason="ALLOWED", limits=order.limits),
        keyset=a_keyset(),
    )


def _order(seed: str, manifest: Manifest) -> Order:
    clock, random = FakeClock(), FakeRandom(seed)
    can = manifest.capabilities
    wall = manifest.limits.wall_ms
    return Order(
        id=ids.new_id(ids.ORDER, clock, random),
        installation=INSTALLATION,
        epoch=1,
        tenant_id=ids.TenantId("default"),
        caller="spiffe://local/caller/tickets",
        agent_id=ids.new_id(ids.AGENT, clock, random),
        agent_name="redact",
        parameters_digest=sha256_digest(b"{}"),
        execution_id=ids.new_id(ids.EXECUTION, clock, random),
        attempt_number=1,
        fencing_token=7,
        node_id=ids.new_id(ids.NODE, clock, random),
        boot_id=ids.new_id(ids.BOOT, clock, random),
        template_digest=sha256_digest(encode_manifest(manifest)),
        module_digest=manifest.module.digest,
        input_commitment=sha256_digest(b"input"),
        input_bytes=5,
        media_type="application/json",
        profile=manifest.profile,
        seed=bytes(32),
        clock_start_at=START,
        limits=Limits() if wall is None else Limits(wall_ms=wall),
        capabilities=can,
        host_call_grants=can.host_call_grants,
        decision_id=ids.new_id(ids.DECISION, clock, random),
        policy_digest=sha256_digest(b"policy"),
        traceparent="",
        not_before=START,
        expires_at=START + timedelta(seconds=60),
        nonce=bytes(16),
        lease=timedelta(seconds=4),
        heartbeat_number=3,
        retry_is_safe=False,
    )


def _receipt(order: Order) -> ReceiptPredicate:
    return ReceiptPredicate(
        installation=INSTALLATION,
        node_id=order.node_id,
        boot_id=order.boot_id,
        sequence=1,
        previous=None,
        order_digest=sha256_digest(b"order"),  # of whatever the order has become, when it is filed
        attempt=None,
        template_digest=order.template_digest,
        module_digest=order.module_digest,
        input_commitment=order.input_commitment,
        output_commitment=sha256_digest(b"output"),
        outcome=Outcome.SUCCEEDED,
        exit_code=0,
        resources=ResourcesUsed(wall=timedelta(milliseconds=3), output_bytes=10),
        engine=EngineIdentity(name="wasmer", version="7.4.2", config_digest=sha256_digest(b"engine")),
        received_at=START,
        started_at=START,
        finished_at=START + timedelta(milliseconds=3),
    )


def _input(order: Order, manifest: Manifest) -> dict:
    return {
        "question": EXECUTE,
        "subject": {"identity": order.caller, "tenant_id": order.tenant_id, "roles": ["caller"]},
        "template": {
            "name": manifest.name,
            "version": manifest.version,
            "digest": order.template_digest,
            "publisher_key_id": rsa("publisher").key_id,
        },
        "agent": order.agent_name,
        "input_bytes": order.input_bytes,
        "capabilities": capabilities_json(order.capabilities),
        "limits": requested_json(manifest.limits),
    }
