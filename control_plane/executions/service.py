"""Use cases of callers: run agents, look at executions, cancel them."""

import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from control_plane.agents.domain import ResolvedAgent
from control_plane.agents.ports import AgentDirectory
from control_plane.audit.domain import NewAuditEntry
from control_plane.executions.acceptor import Acceptor
from control_plane.executions.completions import Completions, Watch
from control_plane.executions.domain import (
    DEFAULT_MAX_ATTEMPTS,
    INLINE_BODY_BYTES,
    Accepted,
    AcceptOutcome,
    ExecutionState,
    IdempotencyKey,
    NewExecution,
    Priority,
    RunSpec,
    StoredBody,
)
from control_plane.executions.encoding import capabilities_bytes, limits_bytes
from control_plane.executions.lifecycle import Execution
from control_plane.executions.ports import ExecutionStore, Placer
from control_plane.executions.trails import ExecutionTrails
from control_plane.paging import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Page
from control_plane.policy.domain import Decision, PolicyInput, Question, Subject
from control_plane.policy.ports import Policy
from shared.clock import Clock, Random
from shared.digests import commit_body, sha256_digest
from shared.errors import (
    ConflictError,
    IdempotencyConflictError,
    InvalidInputError,
    NotFoundError,
    PolicyDeniedError,
    StoppedError,
)
from shared.ids import AUDIT_ENTRY, BODY, EXECUTION, BodyId, ExecutionId, TenantId, new_id
from shared.json_bodies import MAX_JUDGED_BYTES, check_body
from shared.manifest import NO_CAPABILITIES
from shared.tracing import Trail

_STALE_TRIES: Final = 2
"""An agent that changed between resolving and accepting is resolved once more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionOptions:
    """Bounds of the use cases."""

    run_deadline: timedelta = timedelta(hours=1)
    """Of an execution whose request names none."""
    max_run_deadline: timedelta = timedelta(days=1)
    max_attempts: int = DEFAULT_MAX_ATTEMPTS


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What a caller asks for."""

    agent: str
    request_id: str
    inline: bytes | None
    """The input, up to `INLINE_BODY_BYTES`; None: it was uploaded."""
    body_id: BodyId | None
    run_deadline: timedelta | None
    traceparent: str
    priority: Priority = Priority.NORMAL


class ExecutionService:
    """Everything a caller can ask of executions."""

    def __init__(
        self,
        *,
        store: ExecutionStore,
        acceptor: Acceptor,
        completions: Completions,
        placer: Placer,
        agents: AgentDirectory,
        policy: Policy,
        clock: Clock,
        random: Random,
        options: ExecutionOptions | None = None,
        trails: ExecutionTrails | None = None,
    ) -> None:
        self._store = store
        self._acceptor = acceptor
        self._completions = completions
        self._placer = placer
        self._agents = agents
        self._policy = policy
        self._clock = clock
        self._random = random
        self._options = options or ExecutionOptions()
        self.trails = trails or ExecutionTrails()

    async def execute(
        self,
        subject: Subject,
        request: RunRequest,
        *,
        method: str,
        accepted: Callable[[], None] = lambda: None,
    ) -> Execution:
        """Run an agent and return its execution after its end; `accepted` is called once there is one.

        Durable before anything runs. Cancelling this call stops the waiting only: the execution goes on and a
        repeat with the same request id finds it.

        Raises:
            NotFoundError: There is no such agent, or no such body.
            TemplateRetiredError, TemplateRevokedError: The agent's template is closed.
            StoppedError: An emergency stop holds the tenant or the template.
            PolicyDeniedError: Policy said no; the denial is recorded.
            IdempotencyConflictError: The request id was used with another request.
            InvalidInputError: The input or the deadline is outside its bounds, or the input breaks its
                template's schema; each wrong field is named.
            ResourceExhaustedError: Too many requests wait already.
            UnavailableError: The database is away; nothing was promised.
        """
        execution_id = self.new_execution_id()
        with self._trailed(execution_id, subject, request, method):
            execution = await self._execute(subject, request, method, execution_id, accepted)
            self.trails.ended(execution_id, execution)
            return execution

    async def _execute(
        self,
        subject: Subject,
        request: RunRequest,
        method: str,
        execution_id: ExecutionId,
        accepted: Callable[[], None],
    ) -> Execution:
        with self._completions.watch(execution_id, awaits_end=True) as watch:
            answer, execution = await self._submit(subject, request, method, execution_id)
            accepted()
            if answer.outcome is AcceptOutcome.NEW:
                return await self._end_of(subject.tenant_id, watch, execution)
        with self._completions.watch(answer.execution_id, awaits_end=True) as watch:
            execution = await self._store.get(subject.tenant_id, answer.execution_id)
            return await self._end_of(subject.tenant_id, watch, execution)

    def new_execution_id(self) -> ExecutionId:
        """Return the id of an execution to come."""
        return new_id(EXECUTION, self._clock, self._random)

    def _trailed(
        self, execution_id: ExecutionId, subject: Subject, request: RunRequest, method: str
    ) -> AbstractContextManager[Trail]:
        return self.trails.request(
            execution_id, subject, agent=request.agent, method=method, incoming=request.traceparent
        )

    async def prepare(
        self, subject: Subject, request: RunRequest, *, method: str, execution_id: ExecutionId
    ) -> NewExecution:
        """Return a request as it would be stored: its input read, its agent resolved, allowed by policy.

        Raises:
            As `execute`, before anything is stored.
        """
        self._acceptor.require_room(subject.tenant_id)
        body = await self._input(subject.tenant_id, request)
        agent = (await self._agents.resolve(subject.tenant_id, request.agent)).for_request(request.request_id)
        decision = await self._decide(subject, agent, body, execution_id)
        await self._check_input(subject.tenant_id, agent, body)
        return self._new_execution(subject, request, method, execution_id, agent, body, decision)

    async def submit(self, subject: Subject, request: RunRequest, *, method: str) -> Execution:
        """Like `execute`, without waiting for the end."""
        execution_id = self.new_execution_id()
        with self._trailed(execution_id, subject, request, method):
            accepted, execution = await self._submit(subject, request, method, execution_id)
        if accepted.outcome is AcceptOutcome.NEW:
            return execution
        return await self._store.get(subject.tenant_id, accepted.execution_id)

    async def get(self, tenant_id: TenantId, execution_id: ExecutionId) -> Execution:
        """Return an execution with its attempts.

        Raises:
            NotFoundError: The tenant has no such execution.
        """
        return await self._store.get(tenant_id, execution_id)

    async def list(
        self,
        tenant_id: TenantId,
        *,
        agent_name: str,
        states: Sequence[ExecutionState],
        page_size: int,
        page_token: str,
    ) -> Page[Execution]:
        """Return a page, newest first; a size of zero means 50.

        Raises:
            InvalidInputError: The page token is not one of ours, or the page is larger than 500.
        """
        if page_size > MAX_PAGE_SIZE:
            raise InvalidInputError(f"page_size is {page_size}, at most {MAX_PAGE_SIZE} are possible")
        return await self._store.list(
            tenant_id,
            agent_name=agent_name,
            states=states,
            page_size=page_size or DEFAULT_PAGE_SIZE,
            page_token=page_token,
        )

    async def watch(self, tenant_id: TenantId, execution_id: ExecutionId) -> AsyncGenerator[Execution]:
        """Yield the execution now and after every change, at last after its end.

        Raises:
            NotFoundError: The tenant has no such execution.
        """
        with self._completions.watch(execution_id) as watch:
            shown: Execution | None = None
            while True:
                execution = await self._store.get(tenant_id, execution_id)
                if execution != shown:
                    shown = execution
                    watch.seen = execution.state
                    yield execution
                if execution.state.is_terminal:
                    return
                await watch.changed()

    async def cancel(self, subject: Subject, execution_id: ExecutionId) -> Execution:
        """Ask for the end: at once while no node has it, else when its node says so. Repeating has no effect.

        Raises:
            NotFoundError: The tenant has no such execution.
            WrongStateError: It has ended.
        """
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=subject.tenant_id,
            actor=subject.identity,
            action="execution.cancel_requested",
            subject=execution_id,
        )
        execution, request = await self._store.request_cancel(subject.tenant_id, execution_id, entry)
        if request is not None:
            self._placer.cancel([request])
        else:
            self._completions.complete(execution)
        return execution

    async def _submit(
        self, subject: Subject, request: RunRequest, method: str, execution_id: ExecutionId
    ) -> tuple[Accepted, Execution]:
        self._acceptor.require_room(subject.tenant_id)
        body = await self._input(subject.tenant_id, request)
        resolved = await self._agents.resolve(subject.tenant_id, request.agent)
        for _ in range(_STALE_TRIES):
            agent = resolved.for_request(request.request_id)
            decision = await self._decide(subject, agent, body, execution_id)
            await self._check_input(subject.tenant_id, agent, body)
            item = self._new_execution(subject, request, method, execution_id, agent, body, decision)
            commit = self.trails.of(execution_id).part("commit")
            accepted = await self._acceptor.accept(item)
            commit.end(outcome=accepted.outcome, placed=accepted.placed)
            if accepted.outcome is not AcceptOutcome.STALE_AGENT:
                break
            resolved = await self._agents.refresh(subject.tenant_id, request.agent)
        _raise_refusal(accepted, request)
        return accepted, _execution_of(item)

    async def _input(self, tenant_id: TenantId, request: RunRequest) -> StoredBody:
        if request.body_id is not None:
            return await self._store.get_body(tenant_id, request.body_id)
        content = request.inline or b""
        if len(content) > INLINE_BODY_BYTES:
            raise InvalidInputError(
                f"the inline input has {len(content)} bytes, at most {INLINE_BODY_BYTES} are possible",
                hint="upload it first and name its body_id",
            )
        salt = self._random.token_bytes(32)
        body = StoredBody(
            body_id=new_id(BODY, self._clock, self._random),
            salt=salt,
            commitment=commit_body(content, salt),
            digest=sha256_digest(content),
            size_bytes=len(content),
            content=content,
        )
        return await self._store.protect(tenant_id, body)

    async def _check_input(self, tenant_id: TenantId, agent: ResolvedAgent, body: StoredBody) -> None:
        """Refuse an input that breaks its template's schema; the node asks again."""
        if agent.input_schema is None:
            return
        content = body.content
        if content is None:
            # A byte more than a body with a schema may have, so that a larger one is refused as what it is.
            content = await self._store.read_body(
                tenant_id, body.body_id, offset_bytes=0, max_bytes=MAX_JUDGED_BYTES + 1
            )
        await check_body(agent.input_schema, content, "input")

    async def _decide(
        self, subject: Subject, agent: ResolvedAgent, body: StoredBody, execution_id: ExecutionId
    ) -> Decision:
        part = self.trails.of(execution_id).part("decide")
        decision = await self._allowed(subject, agent, body)
        part.end(decision_id=decision.decision_id)
        return decision

    async def _allowed(self, subject: Subject, agent: ResolvedAgent, body: StoredBody) -> Decision:
        asked = PolicyInput(
            subject=subject,
            template_name=agent.template_name,
            template_version=agent.template_version,
            template_digest=agent.template_digest,
            capabilities=agent.capabilities,
            limits=agent.limits,
            publisher_key_id=agent.publisher_key_id,
            agent=agent.name,
            input_bytes=body.size_bytes,
        )
        if agent.capabilities != NO_CAPABILITIES:
            # An allowed one is not stored: the decision below is, with the same bundle and capabilities.
            grant = await self._policy.decide(Question.GRANT_CAPABILITIES, asked)
            if not grant.allowed:
                await self._deny(subject, agent, grant)
        decision = await self._policy.decide(Question.EXECUTE, asked)
        if not decision.allowed:
            await self._deny(subject, agent, decision)
        return decision

    async def _deny(self, subject: Subject, agent: ResolvedAgent, decision: Decision) -> None:
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=subject.tenant_id,
            actor=subject.identity,
            action="execution.denied",
            subject=agent.agent_id,
            result=PolicyDeniedError.reason,
            details={
                "agent": agent.name,
                "decision_id": decision.decision_id,
                "policy_reason": decision.reason,
            },
        )
        await self._store.record_denial(decision, entry)
        raise PolicyDeniedError(
            f"policy denies {decision.question}: {decision.reason} (decision {decision.decision_id})"
        )

    def _new_execution(
        self,
        subject: Subject,
        request: RunRequest,
        method: str,
        execution_id: ExecutionId,
        agent: ResolvedAgent,
        body: StoredBody,
        decision: Decision,
    ) -> NewExecution:
        now = self._clock.now()
        run = RunSpec(
            execution_id=execution_id,
            tenant_id=subject.tenant_id,
            caller=subject.identity,
            agent_id=agent.agent_id,
            agent_name=agent.name,
            template_digest=agent.template_digest,
            module_digest=agent.module_digest,
            parameters=agent.parameters,
            parameters_digest=agent.parameters_digest,
            input=body,
            media_type=agent.media_type,
            profile=agent.profile,
            seed=self._random.token_bytes(32),
            clock_start_at=now,
            limits=limits_bytes(decision.limits),
            capabilities=capabilities_bytes(agent.capabilities),
            retry_is_safe=agent.retry_is_safe,
            decision_id=decision.decision_id,
            policy_digest=decision.policy_digest,
            traceparent=self.trails.of(execution_id).traceparent or request.traceparent,
            run_deadline_at=now + self._run_deadline(request),
        )
        return NewExecution(
            run=run,
            agent_revision=agent.revision,
            idempotency=IdempotencyKey(
                method=method,
                request_id=request.request_id,
                hmac_key=self._random.token_bytes(32),
                fingerprint=_fingerprint(request, body),
            ),
            decision=decision,
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            max_attempts=self._options.max_attempts,
            priority=request.priority,
            created_at=now,
        )

    def _run_deadline(self, request: RunRequest) -> timedelta:
        deadline = request.run_deadline or self._options.run_deadline
        if not timedelta(0) < deadline <= self._options.max_run_deadline:
            raise InvalidInputError(
                f"run_deadline is {deadline}, it has to be positive and at most "
                f"{self._options.max_run_deadline}"
            )
        return deadline

    async def _end_of(self, tenant_id: TenantId, watch: Watch, execution: Execution) -> Execution:
        while not execution.state.is_terminal:
            watch.seen = execution.state
            known = await watch.changed()
            execution = known or await self._store.get(tenant_id, execution.execution_id)
        return execution


def _raise_refusal(accepted: Accepted, request: RunRequest) -> None:
    if accepted.outcome is AcceptOutcome.CONFLICT:
        raise IdempotencyConflictError(f"request id {request.request_id!r} was used with another request")
    if accepted.outcome is AcceptOutcome.STOPPED:
        raise StoppedError(f"agent {request.agent} is stopped: {accepted.stop_reason}")
    if accepted.outcome is AcceptOutcome.BODY_GONE:
        raise NotFoundError(f"body {request.body_id} was removed", hint="upload the input again")
    if accepted.outcome is AcceptOutcome.STALE_AGENT:
        raise ConflictError(f"agent {request.agent} changes while executions of it are accepted")


def _fingerprint(request: RunRequest, body: StoredBody) -> bytes:
    """What makes two requests the same: agent, input and deadline; each with its length before it."""
    hasher = hashlib.sha256(b"af-request-v1")
    deadline = "" if request.run_deadline is None else str(request.run_deadline)
    for part in (request.agent, body.digest, deadline):
        data = part.encode()
        hasher.update(len(data).to_bytes(4, "big") + data)
    return hasher.digest()


def _execution_of(item: NewExecution) -> Execution:
    """Return a newcomer as its caller sees it, from memory."""
    run = item.run
    return Execution(
        execution_id=run.execution_id,
        tenant_id=run.tenant_id,
        agent_id=run.agent_id,
        agent_name=run.agent_name,
        template_digest=run.template_digest,
        caller=run.caller,
        decision_id=run.decision_id,
        media_type=run.media_type,
        input_body_id=run.input.body_id,
        input_commitment=run.input.commitment,
        input_bytes=run.input.size_bytes,
        run_deadline_at=run.run_deadline_at,
        retry_is_safe=run.retry_is_safe,
        max_attempts=item.max_attempts,
        created_at=item.created_at,
        claimable_at=item.created_at,
    )
