"""gRPC adapter of replays: parse, one use case, convert."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from agentfactory.v1 import replay_pb2 as pb
from agentfactory.v1 import replay_pb2_grpc

from control_plane.replay.domain import Part, PartKind
from control_plane.replay.service import ReplayService
from shared.ids import EXECUTION, parse_id
from shared.rpc.identity import caller

_KINDS: Final = {
    PartKind.MODULE: pb.REPLAY_PART_KIND_MODULE,
    PartKind.PARAMETERS: pb.REPLAY_PART_KIND_PARAMETERS,
    PartKind.INPUT: pb.REPLAY_PART_KIND_INPUT,
    PartKind.OUTPUT: pb.REPLAY_PART_KIND_OUTPUT,
    PartKind.LOG: pb.REPLAY_PART_KIND_LOG,
    PartKind.RECORDING: pb.REPLAY_PART_KIND_RECORDING,
}


class ReplayServicer(replay_pb2_grpc.ReplayServiceServicer):
    """Serves `ReplayService`."""

    def __init__(self, service: ReplayService) -> None:
        self._service = service

    async def DownloadReplayMaterial(
        self, request: pb.DownloadReplayMaterialRequest, _: Any
    ) -> AsyncGenerator[pb.DownloadReplayMaterialResponse]:
        material = self._service.material(caller().tenant_id, parse_id(EXECUTION, request.execution_id))
        async with aclosing(material) as pieces:
            async for piece in pieces:
                yield _to_proto(piece)


def _to_proto(piece: Part | bytes) -> pb.DownloadReplayMaterialResponse:
    if isinstance(piece, bytes):
        return pb.DownloadReplayMaterialResponse(chunk=piece)
    part = pb.ReplayPart(kind=_KINDS[piece.kind], size_bytes=piece.size_bytes, salt=piece.salt)
    return pb.DownloadReplayMaterialResponse(part=part)
