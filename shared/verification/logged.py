"""Whether a log has signed a checkpoint, and whether something is a leaf below it: checks 9 and 11 to 13."""

from collections.abc import Sequence

from shared.checkpoints import Checkpoint, SignedCheckpoint, key_id
from shared.errors import EvidenceMissingError, MalformedError, UnknownKeyError
from shared.ids import KeyId
from shared.log_leaf import LeafKind, audit_content, commitment
from shared.merkle import leaf_hash, verify_inclusion
from shared.receipt_file import FiledEntry, FiledLeaf
from shared.signatures import PublicKey
from shared.verification.same import require_same


def log_signers(signed: SignedCheckpoint, *, origin: str, keys: Sequence[PublicKey]) -> frozenset[KeyId]:
    """Return which of the log's keys signed; at least one did, and every signature under one of them holds.

    Raises:
        UnknownKeyError: It is of another log, or none of the keys signed it.
        SignatureInvalidError: A signature under one of the keys is not right.
        MalformedError: It carries two signatures by one key.
    """
    if signed.checkpoint.origin != origin:
        raise UnknownKeyError(f"the checkpoint is of log {signed.checkpoint.origin!r}, not {origin!r}")
    named = [(line.name, line.key_id) for line in signed.signatures]
    if len(set(named)) != len(named):
        raise MalformedError("the checkpoint carries two signatures by one key")
    known = {(origin, key_id(origin, key)): key for key in keys}
    signers = set()
    for line in signed.signatures:
        key = known.get((line.name, line.key_id))
        if key is not None:
            key.verify(line.signature, signed.checkpoint.text.encode())
            signers.add(key.key_id)
    if not signers:
        raise UnknownKeyError(f"no known key of log {origin!r} has signed the checkpoint")
    return frozenset(signers)


def require_leaf(
    leaf: FiledLeaf, *, kind: LeafKind, subject: str, content: bytes, checkpoint: Checkpoint
) -> None:
    """Return if, and only if, `content` is what the leaf commits to, and the leaf is below the root.

    Raises:
        ProofInvalidError: It is not.
    """
    data = commitment(kind=kind, subject=subject, salt=leaf.salt, content=content)
    verify_inclusion(
        leaf=leaf_hash(data), index=leaf.index, size=checkpoint.size, path=leaf.path, root=checkpoint.root
    )


def require_entry(
    entry: FiledEntry | None, *, action: str, subject: str, checkpoint: Checkpoint
) -> FiledEntry:
    """Return the audit entry if it says this of that subject, and is a leaf below the root.

    Raises:
        EvidenceMissingError: There is none.
        EvidenceMismatchError: It says something else.
        ProofInvalidError: It is not in the log as it stands here.
    """
    if entry is None:
        raise EvidenceMissingError(f"the file lacks the audit entry {action!r} of {subject}")
    require_same("action", entry.action, action)
    require_same("subject", entry.subject, subject)
    require_same("result", entry.result, "ok")
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
    require_leaf(
        entry.leaf,
        kind=LeafKind.AUDIT_ENTRY,
        subject=entry.audit_entry_id,
        content=content,
        checkpoint=checkpoint,
    )
    return entry
