"""gRPC adapter of the audit log: parse, one use case, convert."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from agentfactory.v1 import audit_pb2, audit_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.audit.domain import AuditEntry, AuditFilter, EntryOrder, Exported, ExportedReceipt
from control_plane.audit.ports import AuditGate, ReceiptEvidence
from control_plane.audit.service import AuditService
from control_plane.completeness.domain import Finding, Progress
from control_plane.completeness.service import CompletenessService, Event
from control_plane.erasure.service import ErasureService
from control_plane.log.domain import InclusionProof
from control_plane.log.service import LogService
from control_plane.policy.caller import calling_subject
from control_plane.policy.convert import decision_to_proto
from shared.errors import InvalidInputError
from shared.ids import TenantId
from shared.roots import decode_relayed
from shared.rpc.identity import caller
from shared.tiles import TileId


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """Serves `AuditService`."""

    def __init__(
        self,
        service: AuditService,
        log: LogService,
        gate: AuditGate,
        *,
        completeness: CompletenessService,
        erasure: ErasureService,
    ) -> None:
        self._service = service
        self._log = log
        self._gate = gate
        self._completeness = completeness
        self._erasure = erasure

    async def ListAuditEntries(
        self, request: audit_pb2.ListAuditEntriesRequest, _: Any
    ) -> audit_pb2.ListAuditEntriesResponse:
        await self._gate.read(calling_subject(), method="ListAuditEntries")
        page = await self._service.list(
            caller().tenant_id,
            _filter_of_list(request),
            order=_ORDERS[request.order],
            page_size=request.page.page_size,
            page_token=request.page.page_token,
        )
        return audit_pb2.ListAuditEntriesResponse(
            audit_entries=[_entry_to_proto(entry) for entry in page.items],
            next_page_token=page.next_page_token,
        )

    async def WatchAuditEntries(
        self, request: audit_pb2.WatchAuditEntriesRequest, _: Any
    ) -> AsyncGenerator[audit_pb2.WatchAuditEntriesResponse]:
        await self._gate.read(calling_subject(), method="WatchAuditEntries")
        wanted = AuditFilter(
            action=request.action, subject=request.subject, actor=request.actor, result=request.result
        )
        watching = self._service.watch(caller().tenant_id, after=request.after, wanted=wanted)
        async with aclosing(watching) as entries:
            async for entry in entries:
                yield audit_pb2.WatchAuditEntriesResponse(audit_entry=_entry_to_proto(entry))

    async def ExportEvidence(
        self, request: audit_pb2.ExportEvidenceRequest, _: Any
    ) -> AsyncGenerator[audit_pb2.ExportEvidenceResponse]:
        await self._gate.read(calling_subject(), method="ExportEvidence")
        after = request.after_log_index if request.HasField("after_log_index") else None
        async with aclosing(self._service.export(caller().tenant_id, after=after)) as exported:
            async for one in exported:
                yield _exported_to_proto(one, self._log.origin)

    async def CheckEvidence(
        self, request: audit_pb2.CheckEvidenceRequest, _: Any
    ) -> AsyncGenerator[audit_pb2.CheckEvidenceResponse]:
        await self._gate.read(calling_subject(), method="CheckEvidence")
        start = request.from_log_index if request.HasField("from_log_index") else None
        async with aclosing(self._completeness.check(from_log_index=start)) as events:
            async for event in events:
                yield _event_to_proto(event)

    async def EraseExecutions(
        self, request: audit_pb2.EraseExecutionsRequest, _: Any
    ) -> audit_pb2.EraseExecutionsResponse:
        erased, more = await self._erasure.erase(
            calling_subject(),
            execution_id=request.execution_id,
            caller=request.caller,
            reason=request.reason,
        )
        return audit_pb2.EraseExecutionsResponse(erased=erased, more=more)

    async def GetReceipt(self, request: audit_pb2.GetReceiptRequest, _: Any) -> audit_pb2.GetReceiptResponse:
        evidence = await self._service.get_receipt(
            caller().tenant_id, receipt_id=request.receipt_id, execution_id=request.execution_id
        )
        return _evidence_to_proto(evidence, await self._log.find_inclusions(_logged(evidence)))

    async def GetCheckpoint(
        self, _request: audit_pb2.GetCheckpointRequest, _: Any
    ) -> audit_pb2.GetCheckpointResponse:
        published = await self._log.published()
        return audit_pb2.GetCheckpointResponse(
            checkpoint=published.checkpoint,
            witnessed=published.witnessed,
            stopped_by=published.stopped_by,
        )

    async def GetLogTile(self, request: audit_pb2.GetLogTileRequest, _: Any) -> audit_pb2.GetLogTileResponse:
        tile = TileId(request.level, request.index)
        return audit_pb2.GetLogTileResponse(hashes=await self._log.tile(tile, request.width))

    async def GetInclusionProof(
        self, request: audit_pb2.GetInclusionProofRequest, _: Any
    ) -> audit_pb2.GetInclusionProofResponse:
        proof = await self._log.prove_inclusion(caller().tenant_id, request.subject)
        return audit_pb2.GetInclusionProofResponse(inclusion=_inclusion_to_proto(proof))

    async def GetConsistencyProof(
        self, request: audit_pb2.GetConsistencyProofRequest, _: Any
    ) -> audit_pb2.GetConsistencyProofResponse:
        path, checkpoint = await self._log.prove_consistency(request.first_size, request.second_size)
        return audit_pb2.GetConsistencyProofResponse(path=path, checkpoint=checkpoint)


_ORDERS: Final = {
    audit_pb2.ENTRY_ORDER_UNSPECIFIED: EntryOrder.NEWEST_FIRST,
    audit_pb2.ENTRY_ORDER_NEWEST_FIRST: EntryOrder.NEWEST_FIRST,
    audit_pb2.ENTRY_ORDER_OLDEST_FIRST: EntryOrder.OLDEST_FIRST,
}


def _filter_of_list(request: audit_pb2.ListAuditEntriesRequest) -> AuditFilter:
    return AuditFilter(
        action=request.action,
        subject=request.subject,
        actor=request.actor,
        result=request.result,
        recorded_from=_time_of(request, "recorded_from"),
        recorded_before=_time_of(request, "recorded_before"),
    )


def _time_of(request: audit_pb2.ListAuditEntriesRequest, name: str) -> datetime | None:
    given: Timestamp = getattr(request, name)
    if not request.HasField(name):  # type: ignore[arg-type]  # one of its fields
        return None
    try:
        return given.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"{name} is no time") from error


def _event_to_proto(event: Event) -> audit_pb2.CheckEvidenceResponse:
    if isinstance(event, Finding):
        found = audit_pb2.EvidenceFinding(
            check=str(event.check), subject=event.subject, message=event.message
        )
        return audit_pb2.CheckEvidenceResponse(finding=found)
    if isinstance(event, Progress):
        progress = audit_pb2.EvidenceProgress(next_log_index=event.next_log_index, tree_size=event.tree_size)
        return audit_pb2.CheckEvidenceResponse(progress=progress)
    return audit_pb2.CheckEvidenceResponse(summary=audit_pb2.EvidenceSummary(**asdict(event)))


def _exported_to_proto(exported: Exported, origin: str) -> audit_pb2.ExportEvidenceResponse:
    answer = audit_pb2.ExportEvidenceResponse(
        log_index=exported.log_index, subject=exported.subject, origin=origin
    )
    fact = exported.fact
    if isinstance(fact, AuditEntry):
        answer.audit_entry.CopyFrom(_entry_to_proto(fact))
    elif isinstance(fact, ExportedReceipt):
        answer.receipt.CopyFrom(_receipt_to_proto(fact))
    else:
        answer.bare_kind = exported.kind
    return answer


def _receipt_to_proto(receipt: ExportedReceipt) -> audit_pb2.ExportedReceipt:
    received_at = Timestamp()
    received_at.FromDatetime(receipt.received_at)
    return audit_pb2.ExportedReceipt(
        receipt_id=receipt.receipt_id,
        execution_id=receipt.execution_id,
        node_id=receipt.node_id,
        sequence=receipt.sequence,
        received_at=received_at,
        accepted=receipt.accepted,
        envelope=receipt.envelope,
    )


def _entry_to_proto(entry: AuditEntry) -> audit_pb2.AuditEntry:
    recorded_at = Timestamp()
    recorded_at.FromDatetime(entry.recorded_at)
    return audit_pb2.AuditEntry(
        audit_entry_id=entry.audit_entry_id,
        recorded_at=recorded_at,
        actor=entry.actor,
        action=entry.action,
        subject=entry.subject,
        result=entry.result,
        details=entry.details,
    )


def _logged(evidence: ReceiptEvidence) -> list[tuple[TenantId, str]]:
    """Return what is to be found in the log: the receipt, and the entries that go with it."""
    entries = [entry for entry in (evidence.submission, evidence.enrollment) if entry is not None]
    return [
        (caller().tenant_id, evidence.receipt_id),
        *((entry.tenant_id, entry.audit_entry_id) for entry in entries),
    ]


def _evidence_to_proto(
    evidence: ReceiptEvidence, proofs: Sequence[InclusionProof | None]
) -> audit_pb2.GetReceiptResponse:
    found = {proof.entry.subject: _inclusion_to_proto(proof) for proof in proofs if proof is not None}
    decision = evidence.decision
    answer = audit_pb2.GetReceiptResponse(
        receipt_id=evidence.receipt_id,
        envelope=evidence.envelope,
        order=audit_pb2.SignedOrder(
            order=evidence.order_content,
            index=evidence.leaf_index,
            path=evidence.path,
            batch_envelope=evidence.batch_envelope,
        ),
        receipt_public_key=evidence.receipt_public_key,
        keyset=decode_relayed(evidence.keyset).envelope if evidence.keyset else b"",
        template_envelope=evidence.template_envelope,
        ancestor_envelopes=evidence.ancestor_envelopes,
        after_eviction=evidence.after_eviction,
        decision=None if decision is None else decision_to_proto(decision, content=decision.input),
        submission=_logged_to_proto(evidence.submission, found),
        enrollment=_logged_to_proto(evidence.enrollment, found),
        log=found.get(evidence.receipt_id),
    )
    if evidence.erased_at is not None:
        answer.erased_at.FromDatetime(evidence.erased_at)
    return answer


def _logged_to_proto(
    entry: AuditEntry | None, found: Mapping[str, audit_pb2.LogInclusion]
) -> audit_pb2.LoggedEntry | None:
    if entry is None:
        return None
    return audit_pb2.LoggedEntry(
        audit_entry=_entry_to_proto(entry), tenant_id=entry.tenant_id, log=found.get(entry.audit_entry_id)
    )


def _inclusion_to_proto(proof: InclusionProof) -> audit_pb2.LogInclusion:
    return audit_pb2.LogInclusion(
        log_index=proof.entry.log_index,
        kind=proof.entry.kind,
        subject=proof.entry.subject,
        salt=proof.entry.salt,
        path=proof.path,
        checkpoint=proof.checkpoint,
    )
