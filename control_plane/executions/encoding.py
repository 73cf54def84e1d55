"""How granted limits and capabilities are kept: deterministic protobuf of agentfactory.v1."""

from functools import lru_cache
from typing import Final

from agentfactory.v1 import common_pb2

from shared.limits import Limits
from shared.manifest import Capabilities
from shared.order_codec import (
    add_later_limits,
    capabilities_from_proto,
    capabilities_to_proto,
    limits_from_proto,
    limits_to_proto,
)

_KEPT: Final = 1024
"""Encodings kept in memory: there are as many as template versions in use."""


@lru_cache(maxsize=_KEPT)
def limits_bytes(limits: Limits) -> bytes:
    """Return limits as agentfactory.v1.Limits."""
    return bytes(limits_to_proto(limits).SerializeToString(deterministic=True))


def limits_of_bytes(encoded: bytes) -> Limits:
    """Return what `limits_bytes` was given, this build's or an older one's."""
    message = common_pb2.Limits.FromString(encoded)
    if not message.fuel:
        add_later_limits(message)
    return limits_from_proto(message)


@lru_cache(maxsize=_KEPT)
def capabilities_bytes(capabilities: Capabilities) -> bytes:
    """Return capabilities as agentfactory.v1.Capabilities."""
    return bytes(capabilities_to_proto(capabilities).SerializeToString(deterministic=True))


def capabilities_of_bytes(encoded: bytes) -> Capabilities:
    """Return what `capabilities_bytes` was given."""
    return capabilities_from_proto(common_pb2.Capabilities.FromString(encoded))
