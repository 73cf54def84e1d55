"""gRPC adapter of denied engines: parse, one use case, convert."""

from typing import Any

from agentfactory.v1 import engines_pb2 as pb
from agentfactory.v1 import engines_pb2_grpc

from control_plane.engines.domain import EngineDenial, EngineRule
from control_plane.engines.service import EngineService
from control_plane.policy.caller import calling_subject


class EngineServicer(engines_pb2_grpc.EngineServiceServicer):
    """Serves `EngineService`."""

    def __init__(self, service: EngineService) -> None:
        self._service = service

    async def CreateEngineDenial(
        self, request: pb.CreateEngineDenialRequest, _: Any
    ) -> pb.CreateEngineDenialResponse:
        denial = await self._service.deny(calling_subject(), _rule(request.engine), reason=request.reason)
        return pb.CreateEngineDenialResponse(denial=_to_proto(denial))

    async def ListEngineDenials(
        self, _request: pb.ListEngineDenialsRequest, _: Any
    ) -> pb.ListEngineDenialsResponse:
        return pb.ListEngineDenialsResponse(denials=map(_to_proto, await self._service.list()))

    async def DeleteEngineDenial(
        self, request: pb.DeleteEngineDenialRequest, _: Any
    ) -> pb.DeleteEngineDenialResponse:
        await self._service.allow(calling_subject(), _rule(request.engine), reason=request.reason)
        return pb.DeleteEngineDenialResponse()


def _rule(ref: pb.EngineRef) -> EngineRule:
    return EngineRule(name=ref.name, version=ref.version, config_digest=ref.config_digest)


def _to_proto(denial: EngineDenial) -> pb.EngineDenial:
    rule = denial.rule
    message = pb.EngineDenial(
        engine=pb.EngineRef(name=rule.name, version=rule.version, config_digest=rule.config_digest),
        reason=denial.reason,
        denied_by=denial.denied_by,
    )
    message.denied_at.FromDatetime(denial.denied_at)
    return message
