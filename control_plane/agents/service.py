"""Creates, finds, updates and removes agents. Knows no gRPC and no SQL."""

from dataclasses import dataclass, replace
from typing import Final

from control_plane.agents.domain import Agent, AgentPage, VersionOfAgent
from control_plane.agents.ports import AgentStore, Templates
from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.channels.ports import ChannelStore
from control_plane.database.ports import Database, Transaction
from control_plane.kv.ports import KvRemover
from control_plane.paging import BAD_TOKEN, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, decode_token, encode_token
from control_plane.policy.domain import Decision, PolicyInput, Question, Subject
from control_plane.policy.gate import PolicyGate
from control_plane.policy.ports import DecisionLog
from control_plane.templates.domain import TemplateRef, TemplateState, TemplateVersion, require_open
from shared.canonical import canonical_json, parse_strict
from shared.clock import Clock, Random
from shared.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidInputError,
    MalformedError,
    NotFoundError,
    ResourceExhaustedError,
)
from shared.ids import AGENT, AUDIT_ENTRY, TenantId, new_id
from shared.manifest import NAME, NO_CAPABILITIES, decode_manifest

AGENTS_CHANNEL: Final = "af_agents"
MAX_FOLLOWERS: Final = 500
"""Agents that follow one channel: they move in one transaction."""

MAX_PARAMETERS_BYTES: Final = 64 * 1024
_NO_PARAMETERS: Final = b"{}"
_PARAMETERS: Final = "parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentUpdate:
    """What changes of an agent. None: it stays."""

    name: str
    revision: int
    """The one that was read."""
    template: TemplateRef | None
    parameters: bytes | None


class AgentService:
    """The use cases of agents."""

    def __init__(
        self,
        *,
        database: Database,
        store: AgentStore,
        values: KvRemover,
        templates: Templates,
        channels: ChannelStore,
        gate: PolicyGate,
        decisions: DecisionLog,
        audit: AuditLog,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._store = store
        self._values = values
        self._templates = templates
        self._channels = channels
        self._gate = gate
        self._decisions = decisions
        self._audit = audit
        self._clock = clock
        self._random = random

    async def create(self, subject: Subject, *, name: str, template: TemplateRef, parameters: bytes) -> Agent:
        """Create an agent, or return the one that has exactly this content. A repeat is decided again.

        Raises:
            InvalidInputError: The parameters do not fit the template's schema.
            NotFoundError: There is no such template version.
            TemplateRetiredError, TemplateRevokedError: It is closed to new agents.
            PolicyDeniedError: Policy says no.
            AlreadyExistsError: The name is taken by other content.
        """
        version = await self._templates.get(subject.tenant_id, template)
        checked = check_parameters(version, parameters)
        if version.state is not TemplateState.ACTIVE:
            # What was created before it was closed is still there for who asks again.
            existing = await self._find(subject.tenant_id, name)
            if existing is not None:
                return _same_or_taken(existing, version, checked, template.channel)
            require_open(version)
        decision = await self._decide(subject, version, name)
        now = self._clock.now()
        agent = Agent(
            channel=template.channel,
            agent_id=new_id(AGENT, self._clock, self._random),
            tenant_id=subject.tenant_id,
            name=name,
            template_name=version.name,
            template_version=version.version,
            template_digest=version.digest,
            parameters=checked,
            revision=1,
            created_at=now,
            updated_at=now,
        )
        async with self._database.transaction() as tx:
            await self._follow(tx, agent)
            if await self._store.add(tx, agent):
                await self._decisions.append(tx, decision)
                await self._audit.append(tx, [self._entry(subject, "agent.created", agent, decision)])
                tx.notify_after_commit(AGENTS_CHANNEL)
                return agent
        other = await self._find(subject.tenant_id, name)
        if other is None:
            raise ConflictError(f"agent {name} came and went meanwhile")
        return _same_or_taken(other, version, checked, template.channel)

    async def get(self, tenant_id: TenantId, name: str) -> Agent:
        """Return one agent.

        Raises:
            NotFoundError: The tenant has no live agent of this name.
        """
        agent = await self._find(tenant_id, name)
        if agent is None:
            raise NotFoundError(f"there is no agent {name}")
        return agent

    async def list(self, tenant_id: TenantId, *, page_size: int, page_token: str) -> AgentPage:
        """Return a page, by name.

        Raises:
            InvalidInputError: The page token is not one of ours.
        """
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        after = _name_of(page_token) if page_token else ""
        async with self._database.transaction() as tx:
            found = await self._store.list(tx, tenant_id, after=after, limit=size + 1)
        more = len(found) > size
        return AgentPage(
            agents=tuple(found[:size]), next_page_token=encode_token(found[size - 1].name) if more else ""
        )

    async def update(self, subject: Subject, change: AgentUpdate) -> Agent:
        """Point an agent at another version or other parameters; executions keep what they have.

        Raises:
            NotFoundError: There is no such agent or template version.
            ConflictError: The agent has another revision than the one that was read.
            WrongStateError: A rollout is under way.
            InvalidInputError, TemplateRetiredError, TemplateRevokedError, PolicyDeniedError: As `create`.
        """
        agent = await self.get(subject.tenant_id, change.name)
        if agent.revision != change.revision:
            raise ConflictError(f"agent {agent.name} has revision {agent.revision}, not {change.revision}")
        agent.require_no_rollout()
        ref = change.template or TemplateRef(digest=agent.template_digest)
        version = await self._templates.get(subject.tenant_id, ref)
        if version.digest != agent.template_digest:
            require_open(version)
        given = agent.parameters if change.parameters is None else change.parameters
        checked = check_parameters(version, given)
        decision = await self._decide(subject, version, agent.name)
        to = VersionOfAgent(version=version.version, digest=version.digest, parameters=checked)
        updated = agent.moved(to, now=self._clock.now())
        if change.template is not None:
            updated = replace(
                updated, template_name=version.name, channel=change.template.channel, previous=None
            )
        async with self._database.transaction() as tx:
            if change.template is not None:
                await self._follow(tx, updated)
            if not await self._store.update(tx, updated, revision=change.revision):
                raise ConflictError(f"agent {agent.name} changed meanwhile")
            await self._decisions.append(tx, decision)
            await self._audit.append(tx, [self._entry(subject, "agent.updated", updated, decision)])
            tx.notify_after_commit(AGENTS_CHANNEL)
        return updated

    async def delete(self, subject: Subject, name: str) -> None:
        """Remove an agent and what it keeps; its executions and receipts stay.

        Raises:
            NotFoundError: There is no live agent of this name.
        """
        async with self._database.transaction() as tx:
            agent_id = await self._store.delete(tx, subject.tenant_id, name)
            if agent_id is None:
                raise NotFoundError(f"there is no agent {name}")
            kv_keys = await self._values.remove_all(tx, subject.tenant_id, agent_id)
            entry = NewAuditEntry(
                audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
                tenant_id=subject.tenant_id,
                actor=subject.identity,
                action="agent.deleted",
                subject=agent_id,
                details={"name": name, "kv_keys": kv_keys},
            )
            await self._audit.append(tx, [entry])
            tx.notify_after_commit(AGENTS_CHANNEL)

    async def _find(self, tenant_id: TenantId, name: str) -> Agent | None:
        async with self._database.transaction() as tx:
            return await self._store.find(tx, tenant_id, name)

    async def _follow(self, tx: Transaction, agent: Agent) -> None:
        """Hold the channel where the agent joins it, until that is stored."""
        if not agent.channel:
            return
        channel = await self._channels.lock(tx, agent.tenant_id, agent.template_name, agent.channel)
        if channel is None or channel.template_digest != agent.template_digest:
            raise ConflictError(f"channel {agent.channel} of {agent.template_name} moved at this moment")
        followers = await self._store.count_followers(tx, agent.tenant_id, agent.template_name, agent.channel)
        if followers >= MAX_FOLLOWERS:
            raise ResourceExhaustedError(
                f"{MAX_FOLLOWERS} agents follow channel {agent.channel} of {agent.template_name} already",
                hint="let it follow another channel, or pin it to a version",
            )

    async def _decide(self, subject: Subject, version: TemplateVersion, name: str) -> Decision:
        asked = policy_input(subject, version, name)
        if asked.capabilities != NO_CAPABILITIES:
            await self._gate.require_recorded(
                Question.GRANT_CAPABILITIES, asked, action="agent.denied", subject=name
            )
        return await self._gate.require(Question.CREATE_AGENT, asked, action="agent.denied", subject=name)

    def _entry(self, subject: Subject, action: str, agent: Agent, decision: Decision) -> NewAuditEntry:
        return NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=subject.tenant_id,
            actor=subject.identity,
            action=action,
            subject=agent.agent_id,
            details={
                "name": agent.name,
                "revision": agent.revision,
                "template_digest": agent.template_digest,
                "decision_id": decision.decision_id,
            },
        )


def policy_input(subject: Subject, version: TemplateVersion, name: str) -> PolicyInput:
    """Return what policy is asked about an agent of this name and version."""
    manifest = decode_manifest(version.manifest)
    return PolicyInput(
        subject=subject,
        template_name=version.name,
        template_version=version.version,
        template_digest=version.digest,
        publisher_key_id=version.publisher_key_id,
        capabilities=manifest.capabilities,
        limits=manifest.limits,
        agent=name,
    )


def check_parameters(version: TemplateVersion, parameters: bytes) -> bytes:
    """Return the parameters as canonical JSON, defaults filled in, when they fit the template's schema.

    Raises:
        InvalidInputError: They are no JSON object of at most 64 KiB, do not fit (each wrong field is named),
            or there is no schema for any.
    """
    try:
        document = parse_strict(parameters or _NO_PARAMETERS, max_bytes=MAX_PARAMETERS_BYTES)
    except MalformedError as error:
        raise InvalidInputError(f"parameters: {error}") from error
    manifest = decode_manifest(version.manifest)
    schema = manifest.parameters_schema
    if schema is not None:
        schema.fill(document, _PARAMETERS)
        schema.check(document, _PARAMETERS, secrets=manifest.capabilities.secrets)
    elif document:
        raise InvalidInputError(f"template {version.name} {version.version} takes no parameters")
    encoded = canonical_json(document)
    if len(encoded) > MAX_PARAMETERS_BYTES:
        raise InvalidInputError(
            f"parameters have {len(encoded)} bytes with their defaults, the bound is {MAX_PARAMETERS_BYTES}"
        )
    return encoded


def _same_or_taken(existing: Agent, version: TemplateVersion, parameters: bytes, channel: str) -> Agent:
    there = (existing.template_digest, existing.parameters, existing.channel)
    if there != (version.digest, parameters, channel):
        raise AlreadyExistsError(
            f"agent {existing.name} exists with other content", hint="update it, or choose another name"
        )
    return existing


def _name_of(token: str) -> str:
    name = decode_token(token)
    if not NAME.fullmatch(name):
        raise InvalidInputError(BAD_TOKEN)
    return name
