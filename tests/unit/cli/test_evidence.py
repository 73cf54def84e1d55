"""What the control plane answers becomes the file: the same one, with exactly the keys that signed."""

from collections.abc import Callable

import pytest
from agentfactory.v1 import audit_pb2, policy_pb2

from cli.evidence import file_of, is_complete
from shared.errors import MalformedError
from shared.receipt_file import FiledEntry, FiledLeaf, ReceiptFile, encode_receipt_file
from shared.verification.checks import verify_receipt_file
from tests.builders.receipt_files import Scene, calling, succeeded, trapped, trust


def inclusion(leaf: FiledLeaf, checkpoint: bytes = b"") -> audit_pb2.LogInclusion:
    return audit_pb2.LogInclusion(log_index=leaf.index, salt=leaf.salt, path=leaf.path, checkpoint=checkpoint)


def entry(filed: FiledEntry) -> audit_pb2.LoggedEntry:
    said = audit_pb2.AuditEntry(
        audit_entry_id=filed.audit_entry_id,
        actor=filed.actor,
        action=filed.action,
        subject=filed.subject,
        result=filed.result,
        details=filed.details,
    )
    said.recorded_at.FromDatetime(filed.recorded_at)
    return audit_pb2.LoggedEntry(audit_entry=said, tenant_id=filed.tenant_id, log=inclusion(filed.leaf))


def answer_of(file: ReceiptFile) -> audit_pb2.GetReceiptResponse:
    log, decision = file.log, file.decision
    assert log is not None
    assert log.submission is not None
    assert log.enrollment is not None
    return audit_pb2.GetReceiptResponse(
        receipt_id=file.receipt_id,
        envelope=file.receipt,
        order=audit_pb2.SignedOrder(
            order=file.order.content,
            index=file.order.index,
            path=file.order.path,
            batch_envelope=file.order.batch,
        ),
        receipt_public_key=file.keys[file.node_key_id].spki_der,
        keyset=file.keyset,
        template_envelope=file.templates[0],
        ancestor_envelopes=file.templates[1:],
        decision=policy_pb2.Decision(
            decision_id=decision.decision_id,
            question=decision.question,
            allowed=decision.result.allowed,
            reason=decision.result.reason,
            input=decision.input,
            policy_digest=decision.policy_digest,
        ),
        submission=entry(log.submission),
        enrollment=entry(log.enrollment),
        log=inclusion(log.receipt, log.checkpoint),
    )


@pytest.mark.parametrize("make", [succeeded, trapped, calling], ids=lambda make: make.__name__)
def test_an_answer_becomes_the_file_that_verifies(make: Callable[[], Scene]) -> None:
    file = make().file()
    made = file_of(answer_of(file))
    assert made == file
    assert verify_receipt_file(encode_receipt_file(made), trust()).proved is not None


@pytest.mark.parametrize("part", ["log", "submission", "enrollment"])
def test_what_the_log_does_not_cover_yet_is_left_out_and_does_not_verify(part: str) -> None:
    answer = answer_of(succeeded().file())
    assert is_complete(answer)
    if part == "log":
        answer.ClearField("log")
    else:
        getattr(answer, part).ClearField("log")
    assert not is_complete(answer)
    failed = verify_receipt_file(encode_receipt_file(file_of(answer)), trust()).failed
    assert failed is not None
    assert (failed.name, failed.reason) == ("checkpoint" if part == "log" else part, "EVIDENCE_MISSING")


def test_an_answer_without_a_decision_makes_no_file() -> None:
    answer = answer_of(succeeded().file())
    answer.ClearField("decision")
    with pytest.raises(MalformedError, match="decision"):
        file_of(answer)
