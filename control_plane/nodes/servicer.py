"""gRPC adapters of NodeService and FleetService: parse, one use case, convert."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

import grpc
from agentfactory.v1 import nodes_pb2, nodes_pb2_grpc

from control_plane.compiled.convert import held_from_proto, target_from_proto
from control_plane.log.node_proofs import NodeProofs
from control_plane.nodes.convert import (
    attempt_from_proto,
    certificate_to_proto,
    duty_from_proto,
    log_proof_to_proto,
    node_to_proto,
    output_header_from_proto,
)
from control_plane.nodes.service import EnrollmentRequest, NodeService
from control_plane.nodes.transfers import NodeTransfers
from shared.errors import InvalidInputError
from shared.ids import InstallationId, NodeId
from shared.rpc.identity import caller

_Context = grpc.aio.ServicerContext[Any, Any]


class SessionServer(Protocol):
    """Serves sessions; implemented by dispatch."""

    def serve(
        self, requests: AsyncIterator[nodes_pb2.SessionRequest], *, node_id: NodeId
    ) -> AsyncGenerator[nodes_pb2.SessionResponse]:
        """Yield what the node shall read until its session ends."""


class NodeServicer(nodes_pb2_grpc.NodeServiceServicer):
    """What nodes call."""

    def __init__(
        self,
        *,
        nodes: NodeService,
        transfers: NodeTransfers,
        sessions: SessionServer,
        proofs: NodeProofs,
        installation: InstallationId,
    ) -> None:
        self._nodes = nodes
        self._transfers = transfers
        self._proofs = proofs
        self._sessions = sessions
        self._installation = installation

    async def EnrollNode(
        self, request: nodes_pb2.EnrollNodeRequest, _: _Context
    ) -> nodes_pb2.EnrollNodeResponse:
        enrolled = await self._nodes.enroll(
            EnrollmentRequest(
                token=request.token,
                csr_der=request.csr_der,
                receipt_public_key=request.receipt_public_key,
                receipt_key_proof=request.receipt_key_proof,
                zone=request.zone,
            )
        )
        message = nodes_pb2.EnrollNodeResponse(
            node_id=enrolled.node.node_id,
            installation=self._installation,
            certificate_chain_der=enrolled.certificate.chain_der,
        )
        message.certificate_expires_at.FromDatetime(enrolled.certificate.expires_at)
        return message

    async def RenewNodeCertificate(
        self, request: nodes_pb2.RenewNodeCertificateRequest, _: _Context
    ) -> nodes_pb2.RenewNodeCertificateResponse:
        return certificate_to_proto(await self._nodes.renew_certificate(caller().node_id, request.csr_der))

    async def Session(
        self, request_iterator: AsyncIterator[nodes_pb2.SessionRequest], _: _Context
    ) -> AsyncIterator[nodes_pb2.SessionResponse]:
        await self._nodes.admit_session(caller().node_id)
        served = self._sessions.serve(aiter(request_iterator), node_id=caller().node_id)
        async with aclosing(served) as messages:
            async for message in messages:
                yield message

    async def FetchArtifact(
        self, request: nodes_pb2.FetchArtifactRequest, _: _Context
    ) -> AsyncIterator[nodes_pb2.FetchArtifactResponse]:
        parts = self._transfers.artifact(
            caller().node_id, attempt_from_proto(request.attempt), request.template_digest
        )
        yield nodes_pb2.FetchArtifactResponse(envelope=await anext(parts))
        async for chunk in parts:
            yield nodes_pb2.FetchArtifactResponse(chunk=chunk)

    async def FetchCompiledArtifact(
        self, request: nodes_pb2.FetchCompiledArtifactRequest, _: _Context
    ) -> AsyncIterator[nodes_pb2.FetchCompiledArtifactResponse]:
        found = await self._transfers.compiled(
            caller().node_id,
            attempt_from_proto(request.attempt),
            request.template_digest,
            target_from_proto(request.target),
            held_from_proto(request.held_pieces),
        )
        async with aclosing(found.pieces) as pieces:
            yield nodes_pb2.FetchCompiledArtifactResponse(
                head=nodes_pb2.CompiledArtifactHead(
                    envelope=found.envelope, statement=found.statement, left_out=found.left_out
                )
            )
            async for piece in pieces:
                yield nodes_pb2.FetchCompiledArtifactResponse(chunk=piece)

    async def FetchBody(
        self, request: nodes_pb2.FetchBodyRequest, _: _Context
    ) -> AsyncIterator[nodes_pb2.FetchBodyResponse]:
        async for chunk in self._transfers.input(caller().node_id, attempt_from_proto(request.attempt)):
            yield nodes_pb2.FetchBodyResponse(chunk=chunk)

    async def UploadOutput(
        self, request_iterator: AsyncIterator[nodes_pb2.UploadOutputRequest], _: _Context
    ) -> nodes_pb2.UploadOutputResponse:
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidInputError("the first message of an upload must be its header")
        await self._transfers.store_output(
            caller().node_id, output_header_from_proto(first.header), _chunks(requests)
        )
        return nodes_pb2.UploadOutputResponse()

    async def GetLogProof(
        self, request: nodes_pb2.GetLogProofRequest, _: _Context
    ) -> nodes_pb2.GetLogProofResponse:
        attempt = attempt_from_proto(request.attempt) if request.HasField("attempt") else None
        return log_proof_to_proto(await self._proofs.prove(caller().node_id, request.known_size, attempt))


async def _chunks(requests: AsyncIterator[nodes_pb2.UploadOutputRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidInputError("an upload has one header, at its beginning")
        yield request.chunk


class FleetServicer(nodes_pb2_grpc.FleetServiceServicer):
    """What operators call."""

    def __init__(self, *, nodes: NodeService) -> None:
        self._nodes = nodes

    async def CreateEnrollmentToken(
        self, request: nodes_pb2.CreateEnrollmentTokenRequest, _: _Context
    ) -> nodes_pb2.CreateEnrollmentTokenResponse:
        who = caller()
        token = await self._nodes.create_token(
            tenant_id=who.tenant_id,
            actor=who.identity,
            ttl=request.ttl.ToTimedelta(),
            zone=request.zone,
            max_uses=request.max_uses or 1,
            duty=duty_from_proto(request.duty),
        )
        message = nodes_pb2.CreateEnrollmentTokenResponse(token=token.secret, max_uses=token.max_uses)
        message.expires_at.FromDatetime(token.expires_at)
        return message

    async def ListNodes(
        self, request: nodes_pb2.ListNodesRequest, _: _Context
    ) -> nodes_pb2.ListNodesResponse:
        page, next_page_token = await self._nodes.list(
            caller().tenant_id, page_size=request.page.page_size, page_token=request.page.page_token
        )
        return nodes_pb2.ListNodesResponse(
            nodes=[node_to_proto(node) for node in page], next_page_token=next_page_token
        )

    async def GetNode(self, request: nodes_pb2.GetNodeRequest, _: _Context) -> nodes_pb2.GetNodeResponse:
        node = await self._nodes.get(caller().tenant_id, NodeId(request.node_id))
        return nodes_pb2.GetNodeResponse(node=node_to_proto(node))

    async def DrainNode(
        self, request: nodes_pb2.DrainNodeRequest, _: _Context
    ) -> nodes_pb2.DrainNodeResponse:
        who = caller()
        node = await self._nodes.drain(who.tenant_id, NodeId(request.node_id), actor=who.identity)
        return nodes_pb2.DrainNodeResponse(node=node_to_proto(node))

    async def EvictNode(
        self, request: nodes_pb2.EvictNodeRequest, _: _Context
    ) -> nodes_pb2.EvictNodeResponse:
        who = caller()
        node = await self._nodes.evict(
            who.tenant_id, NodeId(request.node_id), actor=who.identity, reason=request.reason
        )
        return nodes_pb2.EvictNodeResponse(node=node_to_proto(node))
