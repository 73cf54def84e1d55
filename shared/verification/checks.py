"""Verifies a receipt file offline: fifteen numbered checks in their order. Asks nobody, reads no clock.

Imports nothing but `shared` (and through it the cryptography library): docs/specs/receipt.md says all of it
again for other languages.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Final

from shared.canonical import parse_strict
from shared.checkpoints import (
    Checkpoint,
    SignedCheckpoint,
    log_origin,
    parse_checkpoint,
    verify_cosignatures,
)
from shared.digests import Digest
from shared.errors import (
    AgentFactoryError,
    EvidenceMissingError,
    KeyRevokedError,
    UnknownKeyError,
)
from shared.ids import KeyId
from shared.inheritance import Parent, require_narrower
from shared.keyset import KeyPurpose, Keyset, KeysetEntry, verify_keyset
from shared.log_leaf import LeafKind
from shared.order_codec import decode_order
from shared.orders import Order, VerifiedOrderRoot, verify_batch, verify_order_inclusion
from shared.packages import VerifiedManifest, verify_manifest
from shared.receipt_codec import VerifiedReceipt, verify_receipt
from shared.receipt_file import FiledLog, ReceiptFile, parse_receipt_file
from shared.receipts import AttemptIdentity, ExpectedReceipt, check_matches, predicate_type_for
from shared.signatures import PublicKey
from shared.verification.decision import require_permission
from shared.verification.logged import log_signers, require_entry, require_leaf
from shared.verification.report import Check, CheckResult, Proved, Verification
from shared.verification.same import require_same, short
from shared.verification.trust import ReceiptTrust

NAMES: Final = (
    "file",
    "keyset",
    "batch",
    "order",
    "templates",
    "decision",
    "receipt",
    "answer",
    "checkpoint",
    "witnesses",
    "inclusion",
    "submission",
    "enrollment",
    "revocations",
    "keys",
)
"""What is checked, in order."""

SUBMITTED: Final = "execution.submitted"
ENROLLED: Final = "node.enrolled"

_INNER_NUMBER: Final = re.compile(r"check \d+: ")


def verify_receipt_file(data: bytes, trust: ReceiptTrust) -> Verification:
    """Return what every check came to; behind the first that fails none is made.

    1. file: canonical JSON of a known version, every field well formed, none unknown.
    2. keyset: a trusted root key signed it, for this installation, of no older version than is known.
    3. batch: an order key that the keyset lists as valid at the time signed the batch's root.
    4. order: its exact bytes are the leaf of that batch, and decode without unknown fields.
    5. templates: publishers of the keyset signed the one that the order names and all that it extends; each
       asks for no more than the next.
    6. decision: it is the one that the order names, it allowed, and what was asked is what was ordered.
    7. receipt: the node's key signed it, and it is well formed.
    8. answer: it answers exactly this order.
    9. checkpoint: the log signed it.
    10. witnesses: as many trusted ones as the quorum cosigned it; no cosignature of a trusted one is wrong.
    11. inclusion: the receipt is a leaf below the checkpoint's root.
    12. submission: so is the audit entry that the execution was accepted, by exactly this decision.
    13. enrollment: so is the audit entry that the node was admitted, with exactly this receipt key.
    14. revocations: no key that signed was revoked at a place of the log before the receipt's.
    15. keys: the file holds exactly the keys that signed, by their fingerprints.
    """
    work = _Work(data, trust)
    checks: list[Check] = []
    for number, (name, check) in enumerate(zip(NAMES, work.checks(), strict=True), 1):
        try:
            checks.append(Check(number=number, name=name, result=CheckResult.HELD, words=check()))
        except AgentFactoryError as error:
            words = _INNER_NUMBER.sub("", str(error))
            failed = Check(
                number=number, name=name, result=CheckResult.FAILED, words=words, reason=error.reason
            )
            return Verification(checks=(*checks, failed, *_not_reached(number)), proved=None)
    return Verification(checks=tuple(checks), proved=work.proved())


def _not_reached(failed: int) -> Iterable[Check]:
    for number, name in enumerate(NAMES[failed:], failed + 1):
        words = f"not looked at, because check {failed} failed"
        yield Check(number=number, name=name, result=CheckResult.NOT_REACHED, words=words)


class _Work:
    """The checks of one file; each may use what those before it have proved."""

    file: ReceiptFile
    keyset: Keyset
    root: VerifiedOrderRoot
    order: Order
    order_digest: Digest
    templates: tuple[VerifiedManifest, ...]
    receipt: VerifiedReceipt
    log: FiledLog
    signed: SignedCheckpoint
    checkpoint: Checkpoint
    log_key_ids: frozenset[KeyId]
    witnesses: tuple[str, ...]

    def __init__(self, data: bytes, trust: ReceiptTrust) -> None:
        self._data = data
        self._trust = trust

    def checks(self) -> tuple[Callable[[], str], ...]:
        """Return the checks in the order of `NAMES`; each returns what held, or raises."""
        return (
            self._file,
            self._keyset,
            self._batch,
            self._order,
            self._templates,
            self._decision,
            self._receipt,
            self._answer,
            self._checkpoint,
            self._witnesses,
            self._inclusion,
            self._submission,
            self._enrollment,
            self._revocations,
            self._keys,
        )

    def proved(self) -> Proved:
        """Return what is known after the last check."""
        return Proved(
            file=self.file,
            keyset=self.keyset,
            order=self.order,
            templates=tuple(one.manifest for one in self.templates),
            decision=self.file.decision.result,
            receipt=self.receipt.predicate,
            witnesses=self.witnesses,
        )

    def _file(self) -> str:
        self.file = parse_receipt_file(self._data)
        return f"the file is canonical, of a known version and about {self.file.receipt_id}"

    def _keyset(self) -> str:
        trust = self._trust
        self.keyset = verify_keyset(
            self.file.keyset,
            root_keys=trust.roots,
            minimum_version=trust.minimum_keyset_version,
            installation=trust.installation,
        )
        return f"keyset {self.keyset.version} is signed by root key {short(self.keyset.root_key_id)}"

    def _batch(self) -> str:
        # Any listed order key first, then its validity at the time that the signed root names.
        keyset = self.keyset
        self.root = verify_batch(
            self.file.order.batch,
            keys=_listed(keyset, KeyPurpose.ORDER),
            installation=keyset.installation,
            minimum_epoch=1,
        )
        for signer in self.root.key_ids:
            keyset.require(KeyPurpose.ORDER, signer, self.root.issued_at)
        key = short(min(self.root.key_ids))
        return f"the root over {self.root.tree_size} orders is signed by order key {key}"

    def _order(self) -> str:
        filed, root = self.file.order, self.root
        self.order_digest = verify_order_inclusion(
            filed.content, index=filed.index, path=filed.path, verified_root=root
        )
        order = self.order = decode_order(filed.content)
        require_same("installation", order.installation, root.installation)
        require_same("epoch", order.epoch, root.epoch)
        return f"order {order.id} is leaf {filed.index} below that root"

    def _templates(self) -> str:
        publishers = self.keyset.keys_for(KeyPurpose.PUBLISHER, self.root.issued_at)
        self.templates = tuple(verify_manifest(one, publisher_keys=publishers) for one in self.file.templates)
        own, *ancestors = self.templates
        require_same("template", own.digest, self.order.template_digest)
        require_same("module", own.manifest.module.digest, self.order.module_digest)
        require_same(
            "ancestors", [one.digest for one in own.manifest.extends], [one.digest for one in ancestors]
        )
        for child, parent in zip(self.templates, ancestors, strict=False):
            require_narrower(child.manifest, Parent(manifest=parent.manifest, digest=parent.digest))
        signer = short(min(own.publisher_key_ids))
        line = f" and the {len(ancestors)} that it extends are" if ancestors else " is"
        return f"template {own.manifest.full_name} ({short(own.digest)}){line} signed, by publisher {signer}"

    def _decision(self) -> str:
        decision = self.file.decision
        require_permission(decision, self.order, self.templates[0])
        policy = short(decision.policy_digest)
        return f"decision {decision.decision_id} of policy {policy} allowed what was ordered"

    def _receipt(self) -> str:
        node_key = self.file.keys.get(self.file.node_key_id)
        if node_key is None:
            raise UnknownKeyError(f"the file lacks the node's key {self.file.node_key_id}")
        self.receipt = verify_receipt(self.file.receipt, node_id=self.order.node_id, node_key=node_key)
        sequence = self.receipt.predicate.sequence
        return f"receipt {sequence} of node {self.order.node_id} is signed by key {short(node_key.key_id)}"

    def _answer(self) -> str:
        check_matches(self.receipt.predicate, expected_of(self.order, self.order_digest))
        return f"the receipt answers exactly this order: {self.receipt.predicate.outcome}"

    def _checkpoint(self) -> str:
        if self.file.log is None:
            raise EvidenceMissingError(
                "no checkpoint of the log covered the receipt when the file was made: fetch it again"
            )
        self.log = self.file.log
        signed = self.signed = parse_checkpoint(self.log.checkpoint)
        origin, keys = self._log_keys(signed)
        self.log_key_ids = log_signers(signed, origin=origin, keys=keys)
        self.checkpoint = signed.checkpoint
        return f"log {origin} signed its first {self.checkpoint.size} leaves"

    def _log_keys(self, signed: SignedCheckpoint) -> tuple[str, list[PublicKey]]:
        origin = signed.checkpoint.origin
        if self._trust.logs:
            keys = [one.public for one in self._trust.logs if one.name == origin]
            if not keys:
                raise UnknownKeyError(f"log {origin!r} is not trusted")
            return origin, keys
        # By any log key that is listed: what it signed was public from then on.
        # A restore begins another epoch, whose log goes on with the leaves of the one before.
        epochs = range(self.order.epoch, max(self.order.epoch, self.keyset.epoch) + 1)
        own = [log_origin(self.order.installation, epoch) for epoch in epochs]
        named = origin if origin in own else own[0]
        return named, list(_listed(self.keyset, KeyPurpose.LOG).values())

    def _witnesses(self) -> str:
        trust = self._trust
        found = verify_cosignatures(self.signed, {one.name: one.public for one in trust.witnesses})
        self.witnesses = tuple(sorted(found))
        if len(found) < trust.quorum:
            raise EvidenceMissingError(f"{len(found)} trusted witnesses cosigned, {trust.quorum} are needed")
        return f"{len(found)} trusted witnesses cosigned it, {trust.quorum} are needed"

    def _inclusion(self) -> str:
        leaf = self.log.receipt
        require_leaf(
            leaf,
            kind=LeafKind.RECEIPT,
            subject=self.file.receipt_id,
            content=hashlib.sha256(self.file.receipt).digest(),
            checkpoint=self.checkpoint,
        )
        return f"the receipt is leaf {leaf.index} of the log"

    def _submission(self) -> str:
        order = self.order
        entry = require_entry(
            self.log.submission, action=SUBMITTED, subject=order.execution_id, checkpoint=self.checkpoint
        )
        require_same("actor", entry.actor, order.caller)
        require_same("tenant", entry.tenant_id, order.tenant_id)
        details, place = parse_strict(entry.details.encode()), entry.leaf.index
        require_same("decision", details.get("decision_id"), order.decision_id)
        require_same("template", details.get("template_digest"), order.template_digest)
        require_same("input", details.get("input_commitment"), order.input_commitment)
        if "decision_digest" not in details:
            # From before submissions named it. Nobody can take it off: the log covers the details.
            return f"its acceptance is leaf {place} of the log; it names the decision by its id only"
        require_same("decision's digest", details["decision_digest"], self.file.decision.digest)
        return f"its acceptance, by exactly this decision, is leaf {place} of the log"

    def _enrollment(self) -> str:
        entry = require_entry(
            self.log.enrollment, action=ENROLLED, subject=self.order.node_id, checkpoint=self.checkpoint
        )
        details = parse_strict(entry.details.encode())
        require_same("receipt key", details.get("receipt_key_id"), self.file.node_key_id)
        return f"the node's admission, with this receipt key, is leaf {entry.leaf.index} of the log"

    def _revocations(self) -> str:
        """A stolen key can date back what it signs, but not put it at an earlier place of the log."""
        used = self._signers()
        revoked = [
            entry
            for entry in self.keyset.entries
            if entry.key_id in used and entry.revoked_log_position is not None
        ]
        for entry in revoked:
            self._require_before(entry, entry.revoked_log_position or 0)
        if revoked:
            return f"the receipt was logged before {len(revoked)} keys that signed were revoked"
        return "no key that signed was revoked at a place of the log"

    def _require_before(self, entry: KeysetEntry, position: int) -> None:
        place = self.checkpoint.size - 1 if entry.purpose is KeyPurpose.LOG else self.log.receipt.index
        if place >= position:
            raise KeyRevokedError(
                f"key {entry.key_id} ({entry.purpose}) is revoked from place {position} of the log on,"
                f" and this is at {place}"
            )

    def _keys(self) -> str:
        used, filed = self._signers(), self.file.keys.keys()
        if used != filed:
            missing, surplus = sorted(used - filed), sorted(filed - used)
            raise UnknownKeyError(
                f"keys that signed and are not filed: {missing}; that signed nothing: {surplus}"
            )
        return f"the {len(filed)} keys of the file are those that signed"

    def _signers(self) -> frozenset[KeyId]:
        publishers = (key_id for one in self.templates for key_id in one.publisher_key_ids)
        return frozenset((*self.root.key_ids, *publishers, self.file.node_key_id, *self.log_key_ids))


def expected_of(order: Order, digest: Digest) -> ExpectedReceipt:
    """Return what a receipt must say to answer ``order``."""
    return ExpectedReceipt(
        type=predicate_type_for(order.format),
        installation=order.installation,
        node_id=order.node_id,
        boot_id=order.boot_id,
        order_digest=digest,
        attempt=AttemptIdentity(
            order_id=order.id,
            execution_id=order.execution_id,
            attempt_number=order.attempt_number,
            fencing_token=order.fencing_token,
        ),
        template_digest=order.template_digest,
        module_digest=order.module_digest,
        input_commitment=order.input_commitment,
    )


def _listed(keyset: Keyset, purpose: KeyPurpose) -> dict[KeyId, PublicKey]:
    """Return the keys of a purpose, whenever they are valid."""
    return {entry.key_id: entry.key for entry in keyset.entries if entry.purpose is purpose}
