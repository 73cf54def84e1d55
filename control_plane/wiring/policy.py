"""Policy and the gate in front of rare changes, from settings."""

from control_plane.policy.builtin import builtin_policy
from control_plane.policy.embedded import EmbeddedPolicyEngines
from control_plane.policy.gate import PolicyGate
from control_plane.policy.service import PolicyService
from control_plane.wiring.base import Base
from control_plane.wiring.stores import Stores


async def build_policy(base: Base) -> PolicyService:
    """Load the policy in force.

    Raises:
        PolicyInvalidError: The engine cannot read it.
    """
    return PolicyService(
        engine=await EmbeddedPolicyEngines().load(builtin_policy(base.settings.allowed_http)),
        observer=base.metrics,
        clock=base.clock,
        random=base.random,
    )


def build_gate(base: Base, stores: Stores, policy: PolicyService) -> PolicyGate:
    return PolicyGate(
        policy=policy,
        decisions=stores.decisions,
        audit=base.audit,
        database=base.database,
        clock=base.clock,
        random=base.random,
    )
