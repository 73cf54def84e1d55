"""gRPC adapter of CompileService: parse, one use case, convert."""

from collections.abc import AsyncIterator
from typing import Any

from agentfactory.v1 import nodes_pb2, nodes_pb2_grpc

from control_plane.compiled.convert import target_from_proto, wanted_to_proto
from control_plane.compiled.service import CompiledService
from shared.digests import parse_digest
from shared.errors import InvalidInputError
from shared.rpc.identity import caller


class CompileServicer(nodes_pb2_grpc.CompileServiceServicer):
    """What compiling nodes call."""

    def __init__(self, service: CompiledService) -> None:
        self._service = service

    async def ListCompilations(
        self, request: nodes_pb2.ListCompilationsRequest, _: Any
    ) -> nodes_pb2.ListCompilationsResponse:
        page, keyset = await self._service.wanted(
            [target_from_proto(target) for target in request.targets],
            page_size=request.page.page_size,
            page_token=request.page.page_token,
        )
        return nodes_pb2.ListCompilationsResponse(
            compilations=map(wanted_to_proto, page.items),
            next_page_token=page.next_page_token,
            keyset=keyset,
        )

    async def FetchModule(
        self, request: nodes_pb2.FetchModuleRequest, _: Any
    ) -> AsyncIterator[nodes_pb2.FetchModuleResponse]:
        parts = self._service.module(caller().node_id, parse_digest(request.template_digest))
        yield nodes_pb2.FetchModuleResponse(envelope=await anext(parts))
        async for chunk in parts:
            yield nodes_pb2.FetchModuleResponse(chunk=chunk)

    async def UploadCompiledArtifact(
        self, request_iterator: AsyncIterator[nodes_pb2.UploadCompiledArtifactRequest], _: Any
    ) -> nodes_pb2.UploadCompiledArtifactResponse:
        who, requests = caller(), aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "statement":
            raise InvalidInputError("the first message of an upload must be its statement")
        stored = await self._service.keep(who.node_id, who.tenant_id, first.statement, _pieces(requests))
        return nodes_pb2.UploadCompiledArtifactResponse(stored=stored)


async def _pieces(requests: AsyncIterator[nodes_pb2.UploadCompiledArtifactRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidInputError("an upload has one statement, at its beginning")
        yield request.chunk
