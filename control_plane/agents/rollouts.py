"""Moves agents between versions of their template, step by step and back. Knows no gRPC and no SQL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from control_plane.agents.domain import ALL_PERCENT, Agent, VersionOfAgent
from control_plane.agents.ports import AgentStore, Templates
from control_plane.agents.service import AGENTS_CHANNEL, check_parameters, policy_input
from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.ports import Database
from control_plane.policy.domain import Decision, Question, Subject
from control_plane.policy.gate import PolicyGate
from control_plane.policy.ports import DecisionLog
from control_plane.templates.domain import TemplateRef, TemplateVersion, require_open
from shared.clock import Clock, Random
from shared.digests import Digest
from shared.errors import ConflictError, InvalidInputError, NotFoundError
from shared.ids import AUDIT_ENTRY, TenantId, new_id

COMPARED_EXECUTIONS: Final = 10_000
"""The newest of an agent that a comparison counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionOutcomes:
    """How the executions of one version stand: number by state."""

    version: str
    """Empty when it is neither the current one, nor the candidate, nor the previous one."""
    digest: Digest
    executions: Mapping[str, int]


class RolloutService:
    """The use cases of rollouts."""

    def __init__(
        self,
        *,
        database: Database,
        store: AgentStore,
        templates: Templates,
        gate: PolicyGate,
        decisions: DecisionLog,
        audit: AuditLog,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._store = store
        self._templates = templates
        self._gate = gate
        self._decisions = decisions
        self._audit = audit
        self._clock = clock
        self._random = random

    async def roll_out(
        self, subject: Subject, name: str, *, version: str, percent: int, parameters: bytes
    ) -> Agent:
        """Give a share of an agent's new executions to another version of its template. Repeat: no effect.

        Empty `parameters`: the agent's own.

        Raises:
            InvalidInputError: The share is not 1 to 100, or the parameters do not fit the version.
            NotFoundError: There is no such agent, or no such version of its template.
            WrongStateError: It follows a channel, another rollout is under way, or it runs that version.
            TemplateRetiredError, TemplateRevokedError: The version is closed.
            PolicyDeniedError: Policy says no.
            ConflictError: The agent changed meanwhile.
        """
        if not 1 <= percent <= ALL_PERCENT:
            raise InvalidInputError(f"percent is {percent}, it has to be 1 to {ALL_PERCENT}")
        agent = await self._get(subject.tenant_id, name)
        found = await self._templates.get(
            subject.tenant_id, TemplateRef(name=agent.template_name, version=version)
        )
        require_open(found)
        to = VersionOfAgent(
            version=found.version,
            digest=found.digest,
            parameters=check_parameters(found, parameters or _parameters_for(agent, found)),
        )
        after = agent.roll_out(to, percent, now=self._clock.now())
        if after == agent:
            return agent
        decision = await self._decide(subject, found, agent)
        details: dict[str, str | int] = {
            "to": to.version,
            "to_digest": to.digest,
            "percent": percent,
            "from": agent.template_version,
        }
        await self._store_change(subject, agent, after, "agent.rollout", details, decision)
        return after

    async def roll_back(self, subject: Subject, name: str, *, reason: str) -> Agent:
        """Give every new execution the version from before the rollout.

        Policy is asked only for what was finished: to end what is under way leaves what runs as it is.

        Raises:
            NotFoundError: There is no such agent.
            WrongStateError: There is nothing to take back.
            TemplateRetiredError, TemplateRevokedError: The version from before is closed.
            PolicyDeniedError: Policy says no to the version from before.
            ConflictError: The agent changed meanwhile.
        """
        agent = await self._get(subject.tenant_id, name)
        after = agent.roll_back(now=self._clock.now())
        decision = None
        if agent.candidate is None:
            ref = TemplateRef(digest=after.template_digest)
            version = await self._templates.get(subject.tenant_id, ref)
            require_open(version)
            decision = await self._decide(subject, version, agent)
        left = agent.candidate.to if agent.candidate is not None else agent.current
        details: dict[str, str | int] = {"to": after.template_version, "from": left.version, "reason": reason}
        await self._store_change(subject, agent, after, "agent.rolled_back", details, decision)
        return after

    async def compare(self, tenant_id: TenantId, name: str) -> list[VersionOutcomes]:
        """Count how the newest executions of an agent's versions stand, the version that runs now first.

        Raises:
            NotFoundError: There is no such agent.
        """
        async with self._database.transaction() as tx:
            agent = await self._store.find(tx, tenant_id, name)
            if agent is None:
                raise NotFoundError(f"there is no agent {name}")
            counted = await self._store.outcomes(tx, agent, newest=COMPARED_EXECUTIONS)
        candidate = agent.candidate.to if agent.candidate is not None else None
        known = {
            one.digest: one.version for one in (agent.current, candidate, agent.previous) if one is not None
        }
        order = list(dict.fromkeys((*known, *counted)))
        return [
            VersionOutcomes(version=known.get(digest, ""), digest=digest, executions=counted.get(digest, {}))
            for digest in order
        ]

    async def _get(self, tenant_id: TenantId, name: str) -> Agent:
        async with self._database.transaction() as tx:
            agent = await self._store.find(tx, tenant_id, name)
        if agent is None:
            raise NotFoundError(f"there is no agent {name}")
        return agent

    async def _decide(self, subject: Subject, version: TemplateVersion, agent: Agent) -> Decision:
        asked = policy_input(subject, version, agent.name)
        return await self._gate.require(
            Question.CREATE_AGENT, asked, action="agent.denied", subject=agent.name
        )

    async def _store_change(
        self,
        subject: Subject,
        before: Agent,
        after: Agent,
        action: str,
        details: dict[str, str | int],
        decision: Decision | None,
    ) -> None:
        told = {"name": after.name, "revision": after.revision, **details}
        async with self._database.transaction() as tx:
            if not await self._store.update(tx, after, revision=before.revision):
                raise ConflictError(f"agent {after.name} changed meanwhile")
            if decision is not None:
                await self._decisions.append(tx, decision)
                told["decision_id"] = decision.decision_id
            entry = NewAuditEntry(
                audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
                tenant_id=subject.tenant_id,
                actor=subject.identity,
                action=action,
                subject=after.agent_id,
                details=told,
            )
            await self._audit.append(tx, [entry])
            tx.notify_after_commit(AGENTS_CHANNEL)


def _parameters_for(agent: Agent, version: TemplateVersion) -> bytes:
    under_way = agent.candidate
    if under_way is not None and under_way.to.digest == version.digest:
        return under_way.to.parameters  # a larger share of what is under way
    return agent.parameters
