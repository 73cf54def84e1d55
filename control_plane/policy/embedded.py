"""Evaluates Rego in this process, by the engine's native module."""

import asyncio

import agentfactory_engine

from control_plane.policy.domain import Evaluation, PolicyBundle
from shared.digests import Digest
from shared.errors import PolicyUndecidedError
from shared.rego import evaluate, load_rego


class EmbeddedPolicyEngine:
    """Implements `PolicyEngine`."""

    name = "embedded"

    def __init__(self, policy: agentfactory_engine.Policy, *, digest: Digest, is_pure: bool) -> None:
        self._policy = policy
        self._digest = digest
        self._is_pure = is_pure

    @property
    def digest(self) -> Digest:
        """See `PolicyEngine.digest`."""
        return self._digest

    @property
    def is_pure(self) -> bool:
        """See `PolicyEngine.is_pure`."""
        return self._is_pure

    async def evaluate(self, rule: str, input_json: str) -> Evaluation:
        """See `PolicyEngine.evaluate`."""
        try:
            return Evaluation(value_json=evaluate(self._policy, rule, input_json))
        except agentfactory_engine.PolicyError as error:
            raise PolicyUndecidedError(str(error)) from error


class EmbeddedPolicyEngines:
    """Implements `PolicyEngines`."""

    takes_anything = True

    async def load(self, bundle: PolicyBundle) -> EmbeddedPolicyEngine:
        """See `PolicyEngines.load`."""
        # A bundle of many rules takes its time to read and prepare; the loop goes on meanwhile.
        return await asyncio.to_thread(_loaded, bundle)


def _loaded(bundle: PolicyBundle) -> EmbeddedPolicyEngine:
    policy, is_pure = load_rego(bundle.files, bundle.data_json)
    return EmbeddedPolicyEngine(policy, digest=bundle.digest, is_pure=is_pure)
