"""gRPC adapter of the audit log: parse, one use case, convert."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from agentfactory.v1 import audit_pb2, audit_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.audit.domain import AuditEntry
from control_plane.audit.ports import AuditGate, ReceiptEvidence
from control_plane.audit.service import AuditService
from control_plane.log.domain import InclusionProof
from control_plane.log.service import LogService
from control_plane.policy.caller import calling_subject
from control_plane.policy.convert import decision_to_proto
from shared.ids import TenantId
from shared.rpc.identity import caller
from shared.tiles import TileId


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """Serves `AuditService`."""

    def __init__(self, service: AuditService, log: LogService, gate: AuditGate) -> None:
        self._service = service
        self._log = log
        self._gate = gate

    async def ListAuditEntries(
        self, request: audit_pb2.ListAuditEntriesRequest, _: Any
    ) -> audit_pb2.ListAuditEntriesResponse:
        await self._gate.read(calling_subject(), method="ListAuditEntries")
        page = await self._service.list(
            caller().tenant_id,
            action=request.action,
            subject=request.subject,
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
        async with aclosing(self._service.watch(caller().tenant_id, after=request.after)) as entries:
            async for entry in entries:
                yield audit_pb2.WatchAuditEntriesResponse(audit_entry=_entry_to_proto(entry))

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
    return audit_pb2.GetReceiptResponse(
        receipt_id=evidence.receipt_id,
        envelope=evidence.envelope,
        order=audit_pb2.SignedOrder(
            order=evidence.order_content,
            index=evidence.leaf_index,
            path=evidence.path,
            batch_envelope=evidence.batch_envelope,
        ),
        receipt_public_key=evidence.receipt_public_key,
        keyset=evidence.keyset,
        template_envelope=evidence.template_envelope,
        ancestor_envelopes=evidence.ancestor_envelopes,
        after_eviction=evidence.after_eviction,
        decision=None if decision is None else decision_to_proto(decision, content=decision.input),
        submission=_logged_to_proto(evidence.submission, found),
        enrollment=_logged_to_proto(evidence.enrollment, found),
        log=found.get(evidence.receipt_id),
    )


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
