"""The policy that comes with the control plane: one Rego file, known by the digest of its exact bytes."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from shared.digests import Digest, sha256_digest

MAX_POLICY_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySource:
    """A policy as it is evaluated."""

    source: str
    digest: Digest


def builtin_policy() -> PolicySource:
    """Return the built-in policy."""
    content = (files("control_plane.policy") / "builtin.rego").read_bytes()
    assert len(content) <= MAX_POLICY_BYTES
    return PolicySource(source=content.decode("utf-8"), digest=sha256_digest(content))
