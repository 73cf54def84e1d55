"""Vouches for compiled modules: a MAC by a key that only this node holds (protocol rule 13). Opens no file.

Loading native code is as good as running it, so what a worker loads is what this node sealed, for this
module, this engine and these CPU features, or nothing.
"""

import hashlib
import hmac
import json
import struct
from dataclasses import dataclass
from typing import Final

from data_plane.sandbox.domain import EngineInfo
from shared.digests import Digest, digest_to_raw, parse_digest
from shared.errors import AgentFactoryError, ArtifactInvalidError
from shared.manifest import Profile

KEY_BYTES: Final = 32
MAX_HEADER_BYTES: Final = 8 * 1024
PREFIX_BYTES: Final = 12

_MAGIC: Final = b"AFARTF02"
_DOMAIN: Final = b"af-artifact-v2"
_VOUCHED_DOMAIN: Final = b"af-artifact-vouched-v1"
"""Of artifacts that were compiled elsewhere. To a build that does not know it they are not sealed at all."""
_PREFIX: Final = struct.Struct(">8sI")
_NO_SEAL: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error)
"""What decoding something else raises; the fifth, for brackets within brackets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactKey:
    """What an artifact is made from and for. Another value of any field is another artifact."""

    module_digest: Digest
    engine: EngineInfo

    @property
    def file_name(self) -> str:
        """Name of its file in the cache."""
        cpu = hashlib.sha256(self.engine.cpu_features.encode()).hexdigest()[:16]
        config = hashlib.sha256(
            f"{self.engine.profile}\0{self.engine.name}\0{self.engine.version}\0"
            f"{self.engine.config_digest}".encode()
        ).hexdigest()[:16]
        return f"{digest_to_raw(self.module_digest).hex()}-{config}-{cpu}.artifact"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What stands before an artifact in its file."""

    key: ArtifactKey
    artifact_digest: Digest
    artifact_bytes: int
    vouched_by: str = ""
    """The compiler key whose word this node took for the code; empty: it compiled the module itself."""
    mac: bytes


def seal(
    key: ArtifactKey, *, artifact_digest: Digest, artifact_bytes: int, vouched_by: str = "", mac_key: bytes
) -> Seal:
    """Vouch for an artifact whose digest this node has computed itself."""
    return Seal(
        key=key,
        artifact_digest=artifact_digest,
        artifact_bytes=artifact_bytes,
        vouched_by=vouched_by,
        mac=_mac(key, artifact_digest, artifact_bytes, vouched_by, mac_key),
    )


def encode_seal(made: Seal) -> bytes:
    """Return the bytes that stand before the artifact."""
    engine = made.key.engine
    header = json.dumps(
        {
            "module": made.key.module_digest,
            "engine": [
                engine.profile,
                engine.name,
                engine.version,
                engine.config_digest,
                engine.cpu_features,
            ],
            "artifact": made.artifact_digest,
            "size": made.artifact_bytes,
            "mac": made.mac.hex(),
        }
        | ({"vouched_by": made.vouched_by} if made.vouched_by else {})
    ).encode()
    return _PREFIX.pack(_MAGIC, len(header)) + header


def header_length(prefix: bytes) -> int:
    """Return how many bytes follow the prefix before the artifact begins.

    Raises:
        ArtifactInvalidError: It is no prefix of ours, or announces too much.
    """
    if len(prefix) != PREFIX_BYTES:
        raise ArtifactInvalidError("artifact file ends early")
    magic, length = _PREFIX.unpack(prefix)
    if magic != _MAGIC or length > MAX_HEADER_BYTES:
        raise ArtifactInvalidError("artifact file is of an unknown format")
    return int(length)


def check_seal(header: bytes, *, key: ArtifactKey, mac_key: bytes) -> Seal:
    """Return the seal if, and only if, this node made it for exactly this key.

    The artifact's own bytes are still the caller's to compare with the digest in the seal, and whether the
    key that vouched for them counts still.

    Raises:
        ArtifactInvalidError: It does not decode, is for another module, profile, engine or CPU, or its MAC is
            wrong.
    """
    try:
        document = json.loads(header)
        profile, name, version, config_digest, cpu_features = document["engine"]
        engine = EngineInfo(
            profile=Profile(profile),
            name=name,
            version=version,
            config_digest=config_digest,
            cpu_features=cpu_features,
        )
        found = Seal(
            key=ArtifactKey(module_digest=parse_digest(document["module"]), engine=engine),
            artifact_digest=parse_digest(document["artifact"]),
            artifact_bytes=int(document["size"]),
            vouched_by=str(document.get("vouched_by", "")),
            mac=bytes.fromhex(document["mac"]),
        )
        expected = _mac(found.key, found.artifact_digest, found.artifact_bytes, found.vouched_by, mac_key)
    except (AgentFactoryError, *_NO_SEAL) as error:
        raise ArtifactInvalidError("artifact seal does not decode") from error
    if not hmac.compare_digest(expected, found.mac):
        raise ArtifactInvalidError("artifact was not sealed by this node")
    if found.key != key:
        raise ArtifactInvalidError("artifact was sealed for another module, profile, engine or cpu")
    return found


def _mac(
    key: ArtifactKey, artifact_digest: Digest, artifact_bytes: int, vouched_by: str, mac_key: bytes
) -> bytes:
    engine = key.engine
    state = hmac.new(mac_key, _VOUCHED_DOMAIN if vouched_by else _DOMAIN, hashlib.sha256)
    for text in (
        key.module_digest,
        engine.profile,
        engine.name,
        engine.version,
        engine.config_digest,
        engine.cpu_features,
        artifact_digest,
        *([vouched_by] if vouched_by else []),
    ):
        part = text.encode()
        # Lengths in front, so that no two lists of fields give the same bytes.
        state.update(struct.pack(">I", len(part)) + part)
    state.update(struct.pack(">Q", artifact_bytes))
    return state.digest()
