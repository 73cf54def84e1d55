"""gRPC adapter of templates: parse, one use case, convert."""

from collections.abc import AsyncIterator
from typing import Any

from agentfactory.v1 import templates_pb2, templates_pb2_grpc

from control_plane.channels.service import ChannelService
from control_plane.policy.caller import calling_subject
from control_plane.templates.catalog import TemplateCatalog
from control_plane.templates.convert import channel_to_proto, ref_from_proto, version_to_proto
from control_plane.templates.service import TemplateService
from shared.errors import InvalidInputError
from shared.rpc.identity import caller


class TemplateServicer(templates_pb2_grpc.TemplateServiceServicer):
    """Serves `TemplateService`."""

    def __init__(
        self, *, service: TemplateService, catalog: TemplateCatalog, channels: ChannelService
    ) -> None:
        self._service = service
        self._catalog = catalog
        self._channels = channels

    async def PublishTemplate(
        self, requests: AsyncIterator[templates_pb2.PublishTemplateRequest], _: Any
    ) -> templates_pb2.PublishTemplateResponse:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidInputError("the first message carries the header")
        version = await self._service.publish(calling_subject(), first.header.envelope, _chunks(requests))
        return templates_pb2.PublishTemplateResponse(template_version=version_to_proto(version))

    async def GetTemplate(
        self, request: templates_pb2.GetTemplateRequest, _: Any
    ) -> templates_pb2.GetTemplateResponse:
        version = await self._catalog.get(caller().tenant_id, ref_from_proto(request.template))
        return templates_pb2.GetTemplateResponse(template_version=version_to_proto(version))

    async def ListTemplates(
        self, request: templates_pb2.ListTemplatesRequest, _: Any
    ) -> templates_pb2.ListTemplatesResponse:
        page = await self._catalog.list(
            caller().tenant_id,
            name=request.name,
            page_size=request.page.page_size,
            page_token=request.page.page_token,
        )
        return templates_pb2.ListTemplatesResponse(
            template_versions=[version_to_proto(version) for version in page.versions],
            next_page_token=page.next_page_token,
        )

    async def RetireTemplate(
        self, request: templates_pb2.RetireTemplateRequest, _: Any
    ) -> templates_pb2.RetireTemplateResponse:
        version = await self._service.retire(calling_subject(), ref_from_proto(request.template))
        return templates_pb2.RetireTemplateResponse(template_version=version_to_proto(version))

    async def RevokeTemplate(
        self, request: templates_pb2.RevokeTemplateRequest, _: Any
    ) -> templates_pb2.RevokeTemplateResponse:
        version = await self._service.revoke(
            calling_subject(), ref_from_proto(request.template), reason=request.reason
        )
        return templates_pb2.RevokeTemplateResponse(template_version=version_to_proto(version))

    async def SetTemplateChannel(
        self, request: templates_pb2.SetTemplateChannelRequest, _: Any
    ) -> templates_pb2.SetTemplateChannelResponse:
        move = await self._channels.move(
            calling_subject(),
            template_name=request.template_name,
            channel=request.channel,
            version=request.version,
            revision=request.revision,
        )
        return templates_pb2.SetTemplateChannelResponse(
            channel=channel_to_proto(move.channel), agents_moved=move.agents_moved
        )

    async def ListTemplateChannels(
        self, request: templates_pb2.ListTemplateChannelsRequest, _: Any
    ) -> templates_pb2.ListTemplateChannelsResponse:
        page = await self._channels.list(
            caller().tenant_id,
            template_name=request.template_name,
            page_size=request.page.page_size,
            page_token=request.page.page_token,
        )
        return templates_pb2.ListTemplateChannelsResponse(
            channels=[channel_to_proto(channel) for channel in page.items],
            next_page_token=page.next_page_token,
        )


async def _chunks(requests: AsyncIterator[templates_pb2.PublishTemplateRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidInputError("every message after the first carries a chunk of the module")
        yield request.chunk.data
