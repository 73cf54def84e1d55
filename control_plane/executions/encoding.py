"""How granted limits and capabilities are kept: deterministic protobuf of agentfactory.v1."""

from functools import lru_cache
from typing import Final

from agentfactory.v1 import common_pb2

from shared.manifest import Capabilities, GrantedLimits

_KEPT: Final = 1024
"""Encodings kept in memory: there are as many as template versions in use."""


@lru_cache(maxsize=_KEPT)
def limits_bytes(limits: GrantedLimits) -> bytes:
    """Return limits as agentfactory.v1.Limits."""
    message = common_pb2.Limits(
        wall_ms=limits.wall_ms,
        cpu_ms=limits.cpu_ms,
        memory_bytes=limits.memory_bytes,
        output_bytes=limits.output_bytes,
        log_bytes=limits.log_bytes,
        open_files=limits.open_files,
    )
    return bytes(message.SerializeToString(deterministic=True))


def limits_of_bytes(encoded: bytes) -> GrantedLimits:
    """Return what `limits_bytes` was given."""
    message = common_pb2.Limits.FromString(encoded)
    return GrantedLimits(
        wall_ms=message.wall_ms,
        cpu_ms=message.cpu_ms,
        memory_bytes=message.memory_bytes,
        output_bytes=message.output_bytes,
        log_bytes=message.log_bytes,
        open_files=message.open_files,
    )


@lru_cache(maxsize=_KEPT)
def capabilities_bytes(capabilities: Capabilities) -> bytes:
    """Return capabilities as agentfactory.v1.Capabilities."""
    message = common_pb2.Capabilities(
        http=[common_pb2.HttpCapability(method=one.method, url=one.url) for one in capabilities.http]
    )
    return bytes(message.SerializeToString(deterministic=True))
