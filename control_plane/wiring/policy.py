"""Policy and the gate in front of rare changes, from settings."""

import agentfactory_engine

from control_plane.policy.builtin import builtin_policy
from control_plane.policy.gate import PolicyGate
from control_plane.policy.service import PolicyService
from control_plane.wiring.base import Base
from control_plane.wiring.stores import Stores


def build_policy(base: Base) -> PolicyService:
    source = builtin_policy(base.settings.allowed_http)
    return PolicyService(
        engine=agentfactory_engine.Policy(source.source, source.data_json),
        policy_digest=source.digest,
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
