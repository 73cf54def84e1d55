"""The policy that comes with the control plane: a Rego file and the operator's data."""

from collections.abc import Sequence
from importlib.resources import files

from control_plane.policy.domain import PolicyBundle


def builtin_policy(allowed_http: Sequence[str] = ()) -> PolicyBundle:
    """Return the built-in policy; `allowed_http` holds entries of the form `METHOD URL`."""
    source = (files("control_plane.policy") / "builtin.rego").read_text(encoding="utf-8")
    entries = [entry.split(" ", 1) for entry in sorted(set(allowed_http))]
    allowed = [{"method": method, "url": url} for method, url in entries]
    return PolicyBundle.of({"builtin.rego": source}, {"operator": {"allowed_http": allowed}})
