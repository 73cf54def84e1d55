"""The policy that comes with the control plane: a Rego file and the operator's data."""

from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files

from control_plane.audit.domain import SYSTEM_ACTOR
from control_plane.policy.bundles import BUILTIN_NAME, BundleRecord
from control_plane.policy.domain import PolicyBundle
from shared.policy_bundle import DATA_FILE


def builtin_policy(allowed_http: Sequence[str] = (), allowed_llm: Sequence[str] = ()) -> PolicyBundle:
    """Return the built-in policy; `allowed_http` holds `METHOD URL`, `allowed_llm` `ENDPOINT/MODEL`."""
    source = (files("control_plane.policy") / "builtin.rego").read_text(encoding="utf-8")
    entries = [entry.split(" ", 1) for entry in sorted(set(allowed_http))]
    allowed = [{"method": method, "url": url} for method, url in entries]
    operator = {"allowed_http": allowed, "allowed_llm": sorted(set(allowed_llm))}
    return PolicyBundle.of({"builtin.rego": source}, {"operator": operator})


def builtin_record(bundle: PolicyBundle, *, now: datetime) -> BundleRecord:
    """Return the built-in policy as it is kept: version 0, unsigned, since it came with the program."""
    rules = {path: text.encode() for path, text in bundle.files.items()}
    return BundleRecord(
        digest=bundle.digest,
        name=BUILTIN_NAME,
        version=0,
        comment="came with the control plane",
        key_id="",
        published_by=SYSTEM_ACTOR,
        published_at=now,
        envelope=b"",
        files=rules | {DATA_FILE: bundle.data_json.encode()},
    )
