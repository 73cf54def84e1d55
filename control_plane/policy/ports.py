"""What the use cases need from policy, and what policy needs from an engine."""

from typing import Protocol

from control_plane.database.ports import Transaction
from control_plane.policy.domain import Decision, PolicyInput, Question


class Policy(Protocol):
    """Answers questions; implemented by `PolicyService`. In process, so not async."""

    def decide(self, question: Question, asked: PolicyInput) -> Decision:
        """Return the answer; an engine that fails, or leaves it undefined, means denied, never an error."""


class PolicyEngine(Protocol):
    """Evaluates Rego; implemented by `agentfactory_engine.Policy`. Safe to share between threads."""

    def evaluate(self, rule: str, input_json: str) -> str:
        """Return the JSON value of a rule, e.g. ``data.agentfactory.execute``.

        Raises:
            Exception: The engine's own, for an undefined rule, an error in it, or a bound that was reached.
        """


class PolicyObserver(Protocol):
    """Counts denials; cheap and never raises."""

    def policy_denied(self, question: str, reason: str) -> None:
        """Policy said no."""


class DecisionLog(Protocol):
    """Keeps decisions."""

    async def append(self, tx: Transaction, decision: Decision) -> None:
        """Add a decision to the caller's transaction."""
