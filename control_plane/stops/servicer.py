"""gRPC adapter of stops: parse, one use case, convert."""

from typing import Any

from agentfactory.v1 import stops_pb2, stops_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.policy.caller import calling_subject
from control_plane.stops.domain import Stop, StopTarget
from control_plane.stops.service import StopService
from shared.ids import TenantId


class StopServicer(stops_pb2_grpc.StopServiceServicer):
    """Serves `StopService`."""

    def __init__(self, service: StopService) -> None:
        self._service = service

    async def CreateStop(self, request: stops_pb2.CreateStopRequest, _: Any) -> stops_pb2.CreateStopResponse:
        subject = calling_subject()
        target = StopTarget(
            tenant_id=TenantId(request.tenant_id) if request.tenant_id else subject.tenant_id,
            template_name=request.template_name,
            template_digest=request.template_digest,
        )
        stopped = await self._service.create(
            subject, target, reason=request.reason, evidence=request.evidence
        )
        return stops_pb2.CreateStopResponse(
            stop=stop_to_proto(stopped.stop), executions_stopped=stopped.executions_stopped
        )

    async def GetStop(self, request: stops_pb2.GetStopRequest, _: Any) -> stops_pb2.GetStopResponse:
        return stops_pb2.GetStopResponse(
            stop=stop_to_proto(await self._service.get(calling_subject(), request.stop_id))
        )

    async def ListStops(self, request: stops_pb2.ListStopsRequest, _: Any) -> stops_pb2.ListStopsResponse:
        page = await self._service.list(
            calling_subject(),
            lifted=request.include_lifted,
            page_size=request.page.page_size,
            page_token=request.page.page_token,
        )
        return stops_pb2.ListStopsResponse(
            stops=[stop_to_proto(stop) for stop in page.items], next_page_token=page.next_page_token
        )

    async def DeleteStop(self, request: stops_pb2.DeleteStopRequest, _: Any) -> stops_pb2.DeleteStopResponse:
        stop = await self._service.lift(calling_subject(), request.stop_id, reason=request.reason)
        return stops_pb2.DeleteStopResponse(stop=stop_to_proto(stop))


def stop_to_proto(stop: Stop) -> stops_pb2.Stop:
    """Return the message of a stop."""
    created_at = Timestamp()
    created_at.FromDatetime(stop.created_at)
    message = stops_pb2.Stop(
        stop_id=stop.stop_id,
        tenant_id=stop.target.tenant_id,
        template_name=stop.target.template_name,
        template_digest=stop.target.template_digest,
        reason=stop.reason,
        created_by=stop.created_by,
        created_at=created_at,
        lifted_by=stop.lifted_by,
        lift_reason=stop.lift_reason,
        is_quarantine=stop.is_quarantine,
        evidence=stop.evidence,
    )
    if stop.lifted_at is not None:
        message.lifted_at.FromDatetime(stop.lifted_at)
    return message
