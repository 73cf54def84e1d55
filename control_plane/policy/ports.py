"""What the use cases need from policy, and what policy needs from an engine."""

from dataclasses import dataclass
from typing import Protocol

from control_plane.database.ports import Transaction
from control_plane.paging import Page
from control_plane.policy.bundles import Activation, BundleRecord, RecordedDecision
from control_plane.policy.domain import Asked, Decision, Evaluation, PolicyBundle, Question
from shared.digests import Digest
from shared.ids import DecisionId, TenantId
from shared.keyset import Keyset


class Policy(Protocol):
    """Answers questions; implemented by `PolicyService`. A remembered answer comes without a suspension."""

    async def decide(self, question: Question, asked: Asked) -> Decision:
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

    @property
    def takes_anything(self) -> bool:
        """Whether it loads what it is given; servers have only what their operator gave them."""

    async def load(self, bundle: PolicyBundle) -> PolicyEngine:
        """Return an engine that evaluates this bundle. The one loaded before goes on undisturbed.

        Raises:
            PolicyInvalidError: Not Rego, or it uses what this engine has not; names every place.
            UnavailableError: The engine is another process and does not answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """The policy in force as one replica has it."""

    number: int
    """Of its activation; 0: none was ever activated."""
    digest: Digest
    version: int
    engine: PolicyEngine | None
    """None: this replica cannot load it, and denies everything."""


class PolicyInForce(Protocol):
    """Knows which policy is in force."""

    def known(self) -> InForce | None:
        """Return it; None while this replica has not asked for too long. Never suspends."""

    async def confirmed(self) -> InForce:
        """Ask what is in force, load it if it is another one, and return it.

        Raises:
            DatabaseUnavailableError: It cannot be learnt; nothing may be decided meanwhile.
        """


class PolicyObserver(Protocol):
    """Counts decisions and denials and shows what is in force; cheap and never raises."""

    def policy_decided(self, question: str, seconds: float) -> None:
        """A question was answered, by memory or by the engine."""

    def policy_denied(self, question: str, reason: str, tenant_id: TenantId) -> None:
        """Policy said no to somebody of a tenant."""

    def policy_in_force(self, *, version: int, loaded: bool) -> None:
        """This replica has taken up another policy, or could not."""


class DecisionLog(Protocol):
    """Keeps decisions."""

    async def append(self, tx: Transaction, decision: Decision) -> None:
        """Add a decision to the caller's transaction."""


class DecisionReader(Protocol):
    """Reads decisions."""

    async def get(self, tenant_id: TenantId, decision_id: DecisionId) -> RecordedDecision:
        """Return a decision.

        Raises:
            NotFoundError: The tenant has no such decision.
        """

    async def list(
        self,
        tenant_id: TenantId,
        *,
        question: str,
        allowed: bool | None,
        page_size: int,
        page_token: str,
    ) -> Page[RecordedDecision]:
        """Return a page, newest first.

        Raises:
            InvalidInputError: The page token is not one of ours.
        """


class BundleStore(Protocol):
    """Keeps bundles and which of them were put in force, for ever."""

    async def add(self, tx: Transaction, bundle: BundleRecord) -> bool:
        """Add a bundle; False when its digest is there already.

        Raises:
            ConflictError: Its version is taken by other bytes.
        """

    async def find(self, tx: Transaction, digest: Digest) -> BundleRecord | None:
        """Return a bundle with its files."""

    async def find_version(self, tx: Transaction, version: int) -> BundleRecord | None:
        """Return the bundle of a version above 0."""

    async def highest_version(self, tx: Transaction) -> int:
        """Return the highest version; 0 when none was published."""

    async def list(self, tx: Transaction, *, page_size: int, page_token: str) -> Page[BundleRecord]:
        """Return a page without files and envelopes, highest version first.

        Raises:
            InvalidInputError: The page token is not one of ours.
        """

    async def newest_activation(self, tx: Transaction) -> Activation | None:
        """Return what is in force; None: nothing was ever activated."""

    async def activation(self, tx: Transaction, number: int) -> Activation | None:
        """Return one activation."""

    async def add_activation(self, tx: Transaction, activation: Activation) -> Activation:
        """Add the next one and return it with its time.

        Raises:
            ConflictError: Somebody else added one of that number.
        """


class PolicyKeys(Protocol):
    """Where the keys come from that may sign a policy."""

    async def current(self) -> Keyset:
        """Return the newest keyset, verified.

        Raises:
            UnavailableError, VerificationError: There is none, or none to be trusted.
        """
