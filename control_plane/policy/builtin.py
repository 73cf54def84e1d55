"""The policy that comes with the control plane: a Rego file and the operator's data, known by one digest."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from shared.canonical import canonical_json
from shared.digests import Digest, sha256_digest

MAX_POLICY_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySource:
    """A policy as it is evaluated."""

    source: str
    data_json: str
    """What the operator sets: canonical JSON."""
    digest: Digest
    """Of the source's bytes, followed by those of the data."""


def builtin_policy(allowed_http: Sequence[str] = ()) -> PolicySource:
    """Return the built-in policy; `allowed_http` holds entries of the form `METHOD URL`."""
    content = (files("control_plane.policy") / "builtin.rego").read_bytes()
    assert len(content) <= MAX_POLICY_BYTES
    entries = [entry.split(" ", 1) for entry in sorted(set(allowed_http))]
    data = canonical_json(
        {"operator": {"allowed_http": [{"method": method, "url": url} for method, url in entries]}}
    )
    return PolicySource(
        source=content.decode("utf-8"), data_json=data.decode(), digest=sha256_digest(content + data)
    )
