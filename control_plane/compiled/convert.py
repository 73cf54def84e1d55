"""Proto to domain and back, for compiled artifacts."""

from agentfactory.v1 import nodes_pb2

from control_plane.compiled.domain import Wanted
from shared.compiled import Target
from shared.digests import DIGEST_BYTES, Digest, digest_from_raw
from shared.errors import InvalidInputError
from shared.order_codec import PROFILE_NUMBERS, PROFILES_BY_NUMBER


def target_from_proto(message: nodes_pb2.CompilationTarget) -> Target:
    """Return the engine that a message names.

    Raises:
        InvalidInputError: Its profile is none of ours.
    """
    profile = PROFILES_BY_NUMBER.get(message.profile)
    if profile is None:
        raise InvalidInputError(f"profile {message.profile} is none of ours")
    return Target(
        profile=profile,
        engine_name=message.engine_name,
        engine_version=message.engine_version,
        config_digest=message.config_digest,
        cpu_features=message.cpu_features,
    )


def held_from_proto(raw: bytes) -> frozenset[Digest]:
    """Return the pieces that a node says it has.

    Raises:
        InvalidInputError: They are no digests, one behind the other.
    """
    if len(raw) % DIGEST_BYTES:
        raise InvalidInputError(f"held_pieces has {len(raw)} bytes: no multiple of {DIGEST_BYTES}")
    return frozenset(
        digest_from_raw(raw[start : start + DIGEST_BYTES]) for start in range(0, len(raw), DIGEST_BYTES)
    )


def wanted_to_proto(wanted: Wanted) -> nodes_pb2.Compilation:
    return nodes_pb2.Compilation(
        template_digest=wanted.template_digest,
        module_digest=wanted.module_digest,
        profile=PROFILE_NUMBERS[wanted.profile],
        module_bytes=wanted.module_bytes,
    )
