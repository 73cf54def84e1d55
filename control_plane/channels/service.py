"""Points channels at versions, and moves the agents that follow them. Knows no gRPC and no SQL."""

from collections.abc import Sequence
from typing import Final

from control_plane.agents.domain import Agent, VersionOfAgent
from control_plane.agents.ports import AgentStore, Templates
from control_plane.agents.service import AGENTS_CHANNEL, MAX_FOLLOWERS, check_parameters, policy_input
from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.channels.domain import CHANNEL_NAME, ChannelMove, TemplateChannel
from control_plane.channels.ports import ChannelStore
from control_plane.database.ports import Database, Transaction
from control_plane.paging import BAD_TOKEN, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Page, decode_token, encode_token
from control_plane.policy.domain import Decision, Question, Subject
from control_plane.policy.gate import PolicyGate
from control_plane.policy.ports import DecisionLog
from control_plane.templates.domain import TemplateRef, TemplateVersion, require_open
from shared.clock import Clock, Random
from shared.errors import ConflictError, InvalidInputError, ResourceExhaustedError
from shared.ids import AUDIT_ENTRY, TenantId, new_id

MAX_CHANNELS: Final = 32
"""Of one template."""


class ChannelService:
    """The use cases of channels."""

    def __init__(
        self,
        *,
        database: Database,
        store: ChannelStore,
        agents: AgentStore,
        templates: Templates,
        gate: PolicyGate,
        decisions: DecisionLog,
        audit: AuditLog,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._store = store
        self._agents = agents
        self._templates = templates
        self._gate = gate
        self._decisions = decisions
        self._audit = audit
        self._clock = clock
        self._random = random

    async def move(
        self, subject: Subject, *, template_name: str, channel: str, version: str, revision: int
    ) -> ChannelMove:
        """Point a channel at a version, and every agent that follows it with it. Repeat: no effect.

        All or nothing: one agent that cannot follow, and nothing moves. A `revision` of zero means whatever
        the channel's is.

        Raises:
            InvalidInputError: The name is none of a channel, or an agent's parameters do not fit the version.
            NotFoundError: The tenant has no such version.
            TemplateRetiredError, TemplateRevokedError: The version is closed.
            PolicyDeniedError: Policy says no for one of the agents.
            ConflictError: The channel has another revision, or it or its agents change at this moment.
            ResourceExhaustedError: The template has as many channels as it may.
        """
        if not CHANNEL_NAME.fullmatch(channel):
            raise InvalidInputError(f"channel {channel!r} is not {CHANNEL_NAME.pattern}")
        found = await self._templates.get(subject.tenant_id, TemplateRef(name=template_name, version=version))
        require_open(found)
        # Before the transaction: no transaction stays open across a question to policy (rule 3).
        decided = await self._decide(subject, found, channel)
        async with self._database.transaction() as tx:
            before = await self._store.lock(tx, subject.tenant_id, template_name, channel)
            if revision and (before is None or before.revision != revision):
                raise ConflictError(
                    f"channel {channel} has revision {before.revision if before else 0}, not {revision}"
                )
            if before is not None and before.template_digest == found.digest:
                return ChannelMove(channel=before, agents_moved=0)
            after = await self._write(tx, subject, before, found, channel)
            moved = await self._move_followers(tx, subject, found, channel, decided)
            details: dict[str, str | int] = {
                "from": before.template_version if before is not None else "",
                "to": after.template_version,
                "to_digest": after.template_digest,
                "agents_moved": len(moved),
            }
            await self._audit.append(
                tx, [self._entry(subject, "channel.moved", f"{template_name} {channel}", details), *moved]
            )
            tx.notify_after_commit(AGENTS_CHANNEL)
        return ChannelMove(channel=after, agents_moved=len(moved))

    async def list(
        self, tenant_id: TenantId, *, template_name: str, page_size: int, page_token: str
    ) -> Page[TemplateChannel]:
        """Return a page, by template and name.

        Raises:
            InvalidInputError: The page token is not one of ours.
        """
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        after = _place_of(page_token) if page_token else ("", "")
        async with self._database.transaction() as tx:
            found = await self._store.list(
                tx, tenant_id, template_name=template_name, after=after, limit=size + 1
            )
        items = tuple(found[:size])
        more = len(found) > size
        return Page(
            items=items,
            next_page_token=encode_token(f"{items[-1].template_name} {items[-1].channel}") if more else "",
        )

    async def _decide(self, subject: Subject, version: TemplateVersion, channel: str) -> dict[str, Decision]:
        async with self._database.transaction() as tx:
            followers = await self._followers(tx, subject.tenant_id, version.name, channel)
        return {
            agent.agent_id: await self._gate.require(
                Question.CREATE_AGENT,
                policy_input(subject, version, agent.name),
                action="agent.denied",
                subject=agent.name,
            )
            for agent in followers
            if agent.template_digest != version.digest
        }

    async def _write(
        self,
        tx: Transaction,
        subject: Subject,
        before: TemplateChannel | None,
        version: TemplateVersion,
        channel: str,
    ) -> TemplateChannel:
        after = TemplateChannel(
            tenant_id=subject.tenant_id,
            template_name=version.name,
            channel=channel,
            template_version=version.version,
            template_digest=version.digest,
            revision=before.revision + 1 if before is not None else 1,
            updated_by=subject.identity,
            updated_at=self._clock.now(),
        )
        if before is not None:
            await self._store.move(tx, after)
            return after
        if await self._store.count(tx, subject.tenant_id, version.name) >= MAX_CHANNELS:
            raise ResourceExhaustedError(
                f"template {version.name} has {MAX_CHANNELS} channels already", hint="move one of them"
            )
        if not await self._store.add(tx, after):
            raise ConflictError(f"channel {channel} of {version.name} is being made by somebody else")
        return after

    async def _move_followers(
        self,
        tx: Transaction,
        subject: Subject,
        version: TemplateVersion,
        channel: str,
        decided: dict[str, Decision],
    ) -> Sequence[NewAuditEntry]:
        entries = []
        for agent in await self._followers(tx, subject.tenant_id, version.name, channel):
            if agent.template_digest == version.digest:
                continue
            decision = decided.get(agent.agent_id)
            if decision is None:
                raise ConflictError(f"agent {agent.name} began to follow channel {channel} at this moment")
            after = agent.moved(
                VersionOfAgent(
                    version=version.version,
                    digest=version.digest,
                    parameters=_parameters(agent, version),
                ),
                now=self._clock.now(),
            )
            if not await self._agents.update(tx, after, revision=agent.revision):
                raise ConflictError(f"agent {agent.name} changed meanwhile")
            await self._decisions.append(tx, decision)
            details: dict[str, str | int] = {
                "name": after.name,
                "revision": after.revision,
                "template_digest": after.template_digest,
                "channel": channel,
                "decision_id": decision.decision_id,
            }
            entries.append(self._entry(subject, "agent.updated", after.agent_id, details))
        return entries

    async def _followers(
        self, tx: Transaction, tenant_id: TenantId, template_name: str, channel: str
    ) -> Sequence[Agent]:
        return await self._agents.followers(tx, tenant_id, template_name, channel, limit=MAX_FOLLOWERS)

    def _entry(
        self, subject: Subject, action: str, name: str, details: dict[str, str | int]
    ) -> NewAuditEntry:
        return NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=subject.tenant_id,
            actor=subject.identity,
            action=action,
            subject=name,
            details=details,
        )


def _parameters(agent: Agent, version: TemplateVersion) -> bytes:
    try:
        return check_parameters(version, agent.parameters)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"agent {agent.name} cannot follow: {error}",
            hint="give it parameters that fit both versions, or pin it, and move the channel then",
        ) from error


def _place_of(token: str) -> tuple[str, str]:
    template_name, _, channel = decode_token(token).partition(" ")
    if not CHANNEL_NAME.fullmatch(template_name) or not CHANNEL_NAME.fullmatch(channel):
        raise InvalidInputError(BAD_TOKEN)
    return template_name, channel
