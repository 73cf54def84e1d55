"""Bundles as they are kept, the history of what was in force, and recorded decisions. No I/O, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from control_plane.audit.domain import SYSTEM_ACTOR
from control_plane.policy.domain import PolicyBundle
from shared.digests import Digest
from shared.ids import DecisionId, TenantId
from shared.policy_bundle import data_of, own_tests, rules_of

BUILTIN_NAME: Final = "builtin"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRef:
    """A bundle by its digest or its version; by neither: the one in force."""

    digest: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRecord:
    """A published bundle."""

    digest: Digest
    name: str
    version: int
    """0: a policy that came with a control plane; it has no signature."""
    comment: str
    key_id: str
    published_by: str
    published_at: datetime
    envelope: bytes = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def rules(self) -> PolicyBundle:
        """What decides."""
        return PolicyBundle(files=rules_of(self.files), data_json=data_of(self.files), digest=self.digest)

    @property
    def label(self) -> str:
        """How a person names it."""
        return f"{self.name} {self.version}"


def with_tests(files: Mapping[str, bytes], digest: Digest) -> PolicyBundle:
    """Return rules and tests as one policy; what decides never has the tests in it."""
    return PolicyBundle(files=rules_of(files) | own_tests(files), data_json=data_of(files), digest=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """One change of what is in force. Numbers are gapless, the highest one counts."""

    number: int
    digest: Digest | None
    """None: the policy that each replica came with."""
    place: int
    """The activation whose place in history this one takes: itself, or after a rollback an earlier one."""
    activated_by: str
    activated_at: datetime | None = None
    """As Postgres says; None before it was stored."""


NEVER: Final = Activation(number=0, digest=None, place=0, activated_by=SYSTEM_ACTOR)
"""Stands for what is in force before the first activation."""


def following(current: Activation | None, digest: Digest | None, *, activated_by: str) -> Activation:
    """Return the activation of another bundle."""
    number = 1 if current is None else current.number + 1
    return Activation(number=number, digest=digest, place=number, activated_by=activated_by)


def rolled_back(current: Activation, before: Activation | None, *, activated_by: str) -> Activation:
    """Return the activation that goes back to `before`: the one numbered one below the current place.

    None: before the first activation, the policy that each replica came with.
    """
    return Activation(
        number=current.number + 1,
        digest=None if before is None else before.digest,
        place=0 if before is None else before.place,
        activated_by=activated_by,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Activated:
    """What an activation led to."""

    activation: Activation
    bundle: BundleRecord
    previous_digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDecision:
    """A decision as it was stored. What it lacks, it is too old to have."""

    decision_id: DecisionId
    tenant_id: TenantId
    question: str
    allowed: bool
    reason: str
    reasons: tuple[str, ...]
    input: bytes = field(repr=False)
    input_digest: str
    policy_digest: Digest
    result_digest: str
    duration_us: int
    engine: str
    engine_decision_id: str
    decided_at: datetime
