"""gRPC adapter of executions: parse, one use case, convert."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from agentfactory.v1 import executions_pb2 as pb
from agentfactory.v1 import executions_pb2_grpc

from control_plane.executions.bodies import BodyService
from control_plane.executions.convert import (
    body_kind_from_proto,
    execution_id_from_proto,
    execution_to_proto,
    request_from_proto,
    states_from_proto,
)
from control_plane.executions.crowd import Crowd
from control_plane.executions.service import ExecutionService, RunRequest
from control_plane.executions.streaming import serve_stream
from control_plane.policy.caller import calling_subject
from shared.digests import parse_digest
from shared.errors import InvalidInputError
from shared.rpc.identity import caller
from shared.rpc.tracing import called_traceparent
from shared.rpc.turns import end_turn


class ExecutionServicer(executions_pb2_grpc.ExecutionServiceServicer):
    """Serves `ExecutionService`."""

    def __init__(self, service: ExecutionService, bodies: BodyService, crowd: Crowd) -> None:
        self._service = service
        self._crowd = crowd
        self._bodies = bodies

    async def Execute(self, request: pb.ExecuteRequest, _: Any) -> pb.ExecuteResponse:
        execution = await self._service.execute(
            calling_subject(), _asked(request.execution), method="Execute", accepted=end_turn
        )
        return pb.ExecuteResponse(execution=execution_to_proto(execution))

    async def SubmitExecution(self, request: pb.SubmitExecutionRequest, _: Any) -> pb.SubmitExecutionResponse:
        execution = await self._service.submit(
            calling_subject(), _asked(request.execution), method="SubmitExecution"
        )
        return pb.SubmitExecutionResponse(execution=execution_to_proto(execution))

    async def StreamExecutions(
        self, requests: AsyncIterator[pb.StreamExecutionsRequest], _: Any
    ) -> AsyncGenerator[pb.StreamExecutionsResponse]:
        async with aclosing(
            serve_stream(self._crowd, calling_subject(), requests, called_traceparent())
        ) as responses:
            async for response in responses:
                yield response

    async def GetExecution(self, request: pb.GetExecutionRequest, _: Any) -> pb.GetExecutionResponse:
        execution = await self._service.get(caller().tenant_id, execution_id_from_proto(request.execution_id))
        return pb.GetExecutionResponse(execution=execution_to_proto(execution))

    async def ListExecutions(self, request: pb.ListExecutionsRequest, _: Any) -> pb.ListExecutionsResponse:
        page = await self._service.list(
            caller().tenant_id,
            agent_name=request.agent,
            states=states_from_proto(request.states),
            page_size=request.page.page_size,
            page_token=request.page.page_token,
        )
        return pb.ListExecutionsResponse(
            executions=[execution_to_proto(one) for one in page.items], next_page_token=page.next_page_token
        )

    async def WatchExecution(
        self, request: pb.WatchExecutionRequest, _: Any
    ) -> AsyncGenerator[pb.WatchExecutionResponse]:
        changes = self._service.watch(caller().tenant_id, execution_id_from_proto(request.execution_id))
        async with aclosing(changes):
            async for execution in changes:
                yield pb.WatchExecutionResponse(execution=execution_to_proto(execution))

    async def CancelExecution(self, request: pb.CancelExecutionRequest, _: Any) -> pb.CancelExecutionResponse:
        execution = await self._service.cancel(
            calling_subject(), execution_id_from_proto(request.execution_id)
        )
        return pb.CancelExecutionResponse(execution=execution_to_proto(execution))

    async def UploadBody(
        self, requests: AsyncIterator[pb.UploadBodyRequest], _: Any
    ) -> pb.UploadBodyResponse:
        header = await _header(requests)
        body_id = await self._bodies.upload(
            calling_subject(),
            digest=parse_digest(header.digest),
            size_bytes=header.size_bytes,
            chunks=_chunks(requests),
        )
        return pb.UploadBodyResponse(body_id=body_id)

    async def DownloadBody(
        self, request: pb.DownloadBodyRequest, _: Any
    ) -> AsyncGenerator[pb.DownloadBodyResponse]:
        pieces = self._bodies.download(
            caller().tenant_id,
            execution_id_from_proto(request.execution_id),
            body_kind_from_proto(request.kind),
        )
        async with aclosing(pieces):
            async for piece in pieces:
                yield pb.DownloadBodyResponse(chunk=piece)


def _asked(message: pb.ExecutionRequest) -> RunRequest:
    return request_from_proto(message, traceparent=called_traceparent())


async def _header(requests: AsyncIterator[pb.UploadBodyRequest]) -> pb.UploadBodyHeader:
    async for request in requests:
        if request.WhichOneof("part") == "header":
            return request.header
        break
    raise InvalidInputError("the first message of an upload has to be its header")


async def _chunks(requests: AsyncIterator[pb.UploadBodyRequest]) -> AsyncGenerator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidInputError("only the first message of an upload may be a header")
        yield request.chunk
