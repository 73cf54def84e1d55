"""Evaluates Rego in this process, by the engine's native module."""

import asyncio

import agentfactory_engine

from control_plane.policy.domain import Evaluation, PolicyBundle
from shared.digests import Digest
from shared.errors import PolicyInvalidError, PolicyUndecidedError


class EmbeddedPolicyEngine:
    """Implements `PolicyEngine`."""

    name = "embedded"

    def __init__(self, policy: agentfactory_engine.Policy, digest: Digest) -> None:
        self._policy = policy
        self._digest = digest

    @property
    def digest(self) -> Digest:
        """See `PolicyEngine.digest`."""
        return self._digest

    @property
    def is_pure(self) -> bool:
        """See `PolicyEngine.is_pure`."""
        return True

    async def evaluate(self, rule: str, input_json: str) -> Evaluation:
        """See `PolicyEngine.evaluate`."""
        try:
            return Evaluation(value_json=self._policy.evaluate(rule, input_json))
        except agentfactory_engine.PolicyError as error:
            raise PolicyUndecidedError(str(error)) from error


class EmbeddedPolicyEngines:
    """Implements `PolicyEngines`."""

    async def load(self, bundle: PolicyBundle) -> EmbeddedPolicyEngine:
        """See `PolicyEngines.load`."""
        # A bundle of many rules takes its time to prepare; the loop goes on meanwhile.
        policy = await asyncio.to_thread(_prepared, bundle)
        return EmbeddedPolicyEngine(policy, bundle.digest)


def _prepared(bundle: PolicyBundle) -> agentfactory_engine.Policy:
    try:
        return agentfactory_engine.Policy(list(bundle.files.items()), bundle.data_json)
    except agentfactory_engine.PolicyError as error:
        raise PolicyInvalidError(str(error)) from error
