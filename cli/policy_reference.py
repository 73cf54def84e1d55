"""How the command line names bundles: published ones by version or digest, others by their files."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shared.errors import InvalidInputError
from shared.policy_bundle import MAX_VERSION

if TYPE_CHECKING:
    from agentfactory.v1 import policy_pb2


def reference(text: str) -> "policy_pb2.PolicyBundleRef":
    """Parse a version or a digest.

    Raises:
        InvalidInputError: It is neither.
    """
    from agentfactory.v1 import policy_pb2

    from shared.digests import parse_digest

    if text.isascii() and text.isdigit() and 1 <= int(text[:20]) <= MAX_VERSION:
        return policy_pb2.PolicyBundleRef(version=int(text))
    if text.startswith("sha256:"):
        return policy_pb2.PolicyBundleRef(digest=parse_digest(text))
    raise InvalidInputError(
        f"policy {text[:80]!r} is neither a version nor sha256:…", hint="see 'agentfactory policy list'"
    )


def candidate_of(files: Mapping[str, bytes]) -> "policy_pb2.PolicyCandidate":
    """Return files as a bundle to be tried."""
    from agentfactory.v1 import policy_pb2

    parts = [policy_pb2.PolicyFile(path=path, content=content) for path, content in sorted(files.items())]
    return policy_pb2.PolicyCandidate(files=policy_pb2.PolicyFiles(files=parts))
