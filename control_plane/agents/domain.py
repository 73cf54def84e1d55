"""Agents as values, and how they move between versions of their template. No I/O, no clock, no randomness."""

import hashlib
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from shared.digests import Digest
from shared.errors import WrongStateError
from shared.ids import AgentId, TenantId
from shared.limits import RequestedLimits
from shared.manifest import Capabilities, Profile
from shared.schemas import JsonSchema

ALL_PERCENT: Final = 100
_BUCKETS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionOfAgent:
    """One version of an agent's template, with the agent's parameters for it."""

    version: str
    digest: Digest
    parameters: bytes
    """Canonical JSON object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The version that a rollout gives to a share of the new executions."""

    to: VersionOfAgent
    percent: int
    """1 to 99."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A named instance of one template version."""

    agent_id: AgentId
    tenant_id: TenantId
    name: str
    template_name: str
    template_version: str
    template_digest: Digest
    parameters: bytes
    """Canonical JSON object."""
    revision: int
    created_at: datetime
    updated_at: datetime
    channel: str = ""
    """The channel whose moves it follows; empty: none."""
    candidate: Candidate | None = None
    """The rollout that is under way."""
    previous: VersionOfAgent | None = None
    """What a finished rollout left behind: a rollback goes there."""

    @property
    def current(self) -> VersionOfAgent:
        """What runs, but for the share of a rollout."""
        return VersionOfAgent(
            version=self.template_version, digest=self.template_digest, parameters=self.parameters
        )

    def moved(self, to: VersionOfAgent, *, now: datetime) -> "Agent":
        """Return it on another version, or with other parameters."""
        return replace(
            self,
            template_version=to.version,
            template_digest=to.digest,
            parameters=to.parameters,
            revision=self.revision + 1,
            updated_at=now,
        )

    def roll_out(self, to: VersionOfAgent, percent: int, *, now: datetime) -> "Agent":
        """Return it with this share of its new executions on `to`; all of them ends the rollout.

        What is so already is returned unchanged.

        Raises:
            WrongStateError: It follows a channel, another rollout is under way, or `to` is what runs already.
        """
        self.require_no_channel()
        under_way = self.candidate
        if under_way is not None and under_way.to.digest != to.digest:
            raise WrongStateError(
                f"a rollout of agent {self.name} to {under_way.to.version} is under way",
                hint="finish it with 100 percent, or roll it back",
            )
        if under_way is None and to.digest == self.template_digest:
            if percent == ALL_PERCENT:
                return self
            raise WrongStateError(f"agent {self.name} runs {to.version} already")
        if percent == ALL_PERCENT:
            return replace(self.moved(to, now=now), candidate=None, previous=self.current)
        candidate = Candidate(to=to, percent=percent)
        if candidate == under_way:
            return self
        return replace(self, candidate=candidate, revision=self.revision + 1, updated_at=now)

    def roll_back(self, *, now: datetime) -> "Agent":
        """Return it without the rollout that is under way, else as before the last one that was finished.

        Raises:
            WrongStateError: There is neither.
        """
        if self.candidate is not None:
            return replace(self, candidate=None, revision=self.revision + 1, updated_at=now)
        if self.previous is None:
            raise WrongStateError(
                f"agent {self.name} has no rollout to take back", hint="name a version with 'agent update'"
            )
        return replace(self.moved(self.previous, now=now), previous=None)

    def require_no_channel(self) -> None:
        """Return when a rollout would not be undone by the next move of a channel.

        Raises:
            WrongStateError: It follows one.
        """
        if self.channel:
            raise WrongStateError(
                f"agent {self.name} follows channel {self.channel}",
                hint="move the channel, or pin the agent to a version first with 'agent update'",
            )

    def require_no_rollout(self) -> None:
        """Return when nothing is under way that a change of the agent would leave half done.

        Raises:
            WrongStateError: A rollout is.
        """
        if self.candidate is not None:
            raise WrongStateError(
                f"a rollout of agent {self.name} to {self.candidate.to.version} is under way",
                hint="finish it with 100 percent, or roll it back",
            )


def runs_candidate(agent_id: str, digest: str, request_id: str, *, percent: int) -> bool:
    """Whether a rollout to the version with this digest gives a request the new version.

    By a hash: a repeat gets the same answer on every replica, a larger share takes nothing back, and the next
    rollout draws other requests.
    """
    drawn = hashlib.sha256(f"{agent_id}\0{digest}\0{request_id}".encode()).digest()
    return int.from_bytes(drawn[:8], "big") % _BUCKETS < percent * _BUCKETS // ALL_PERCENT


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedAgent:
    """An agent with everything of its template that an execution is made from."""

    agent_id: AgentId
    name: str
    revision: int
    template_name: str
    template_version: str
    template_digest: Digest
    module_digest: Digest
    publisher_key_id: str
    parameters: bytes
    """Canonical JSON object."""
    parameters_digest: Digest
    limits: RequestedLimits
    """As the manifest asks; policy grants them or less."""
    capabilities: Capabilities
    media_type: str
    profile: Profile
    retry_is_safe: bool
    input_schema: JsonSchema | None = field(default=None, repr=False)
    """What inputs have to fit; None: they are anything."""
    candidate: "ResolvedAgent | None" = None
    """The agent as a rollout gives it to a share of the executions."""
    candidate_percent: int = 0

    def for_request(self, request_id: str) -> "ResolvedAgent":
        """Return what a request runs, by its id alone."""
        if self.candidate is not None and runs_candidate(
            self.agent_id, self.candidate.template_digest, request_id, percent=self.candidate_percent
        ):
            return self.candidate
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPage:
    """One page of agents, by name."""

    agents: tuple[Agent, ...]
    next_page_token: str
    """Empty when this is the last one."""
