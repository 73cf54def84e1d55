"""What the use cases need from policy, and what policy needs from an engine."""

from typing import Protocol

from control_plane.database.ports import Transaction
from control_plane.policy.domain import Decision, Evaluation, PolicyBundle, PolicyInput, Question
from shared.digests import Digest


class Policy(Protocol):
    """Answers questions; implemented by `PolicyService`. A remembered answer comes without a suspension."""

    async def decide(self, question: Question, asked: PolicyInput) -> Decision:
        """Return the answer; an engine that fails, or leaves it undefined, means denied, never an error."""


class PolicyEngine(Protocol):
    """Evaluates one bundle, which it keeps as long as it lives."""

    @property
    def name(self) -> str:
        """``embedded`` or ``opa``."""

    @property
    def digest(self) -> Digest:
        """Of the bundle."""

    @property
    def is_pure(self) -> bool:
        """Whether equal inputs get equal answers: the bundle reads no clock, no randomness and no network."""

    async def evaluate(self, rule: str, input_json: str) -> Evaluation:
        """Return the value of a rule, e.g. ``data.agentfactory.execute``.

        Raises:
            PolicyUndecidedError: The rule is undefined or does not exist, fails, or does not end within its
                bounds; the engine is away, or answers for another bundle.
        """


class PolicyEngines(Protocol):
    """Makes engines."""

    async def load(self, bundle: PolicyBundle) -> PolicyEngine:
        """Return an engine that evaluates this bundle. The one loaded before goes on undisturbed.

        Raises:
            PolicyInvalidError: Not Rego, or it uses what this engine has not; names every place.
            UnavailableError: The engine is another process and does not answer.
        """


class PolicyObserver(Protocol):
    """Counts denials; cheap and never raises."""

    def policy_denied(self, question: str, reason: str) -> None:
        """Policy said no."""


class DecisionLog(Protocol):
    """Keeps decisions."""

    async def append(self, tx: Transaction, decision: Decision) -> None:
        """Add a decision to the caller's transaction."""
