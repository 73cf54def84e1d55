"""Between the contract's messages and the values of templates."""

from typing import Final

from agentfactory.v1 import templates_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.channels.domain import TemplateChannel
from control_plane.templates.domain import TemplateRef, TemplateState, TemplateVersion

_STATES: Final = {
    TemplateState.ACTIVE: templates_pb2.TEMPLATE_STATE_ACTIVE,
    TemplateState.RETIRED: templates_pb2.TEMPLATE_STATE_RETIRED,
    TemplateState.REVOKED: templates_pb2.TEMPLATE_STATE_REVOKED,
}


def ref_from_proto(message: templates_pb2.TemplateRef) -> TemplateRef:
    """Return what a request names.

    Raises:
        InvalidInputError: It is not name and version, name and channel, or a digest alone.
    """
    return TemplateRef(
        name=message.name, version=message.version, digest=message.digest, channel=message.channel
    )


def version_to_proto(version: TemplateVersion) -> templates_pb2.TemplateVersion:
    """Return the message of a version."""
    published_at = Timestamp()
    published_at.FromDatetime(version.published_at)
    return templates_pb2.TemplateVersion(
        template_version_id=version.template_version_id,
        name=version.name,
        version=version.version,
        digest=version.digest,
        module_digest=version.module_digest,
        module_bytes=version.module_bytes,
        publisher_key_id=version.publisher_key_id,
        state=_STATES[version.state],
        manifest=version.manifest,
        envelope=version.envelope,
        published_at=published_at,
        published_by=version.published_by,
    )


def channel_to_proto(channel: TemplateChannel) -> templates_pb2.TemplateChannel:
    """Return the message of a channel."""
    updated_at = Timestamp()
    updated_at.FromDatetime(channel.updated_at)
    return templates_pb2.TemplateChannel(
        template_name=channel.template_name,
        channel=channel.channel,
        template_version=channel.template_version,
        template_digest=channel.template_digest,
        revision=channel.revision,
        updated_by=channel.updated_by,
        updated_at=updated_at,
    )
