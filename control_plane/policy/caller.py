"""Who asks policy on behalf of an RPC: the caller that the interceptor has let in."""

from control_plane.policy.domain import Subject
from shared.rpc.identity import caller


def calling_subject() -> Subject:
    """Return the caller of the RPC that runs now.

    Raises:
        UnauthenticatedError: No RPC runs here.
    """
    who = caller()
    return Subject(identity=who.identity, tenant_id=who.tenant_id, roles=who.roles)
