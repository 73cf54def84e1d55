"""Use cases that look and change nothing: try a bundle, read decisions, make them again."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from control_plane.database.ports import Database
from control_plane.paging import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Page
from control_plane.policy.answers import Answer, ask
from control_plane.policy.bundles import BundleRecord, BundleRef, RecordedDecision
from control_plane.policy.domain import Question, Subject
from control_plane.policy.library import PolicyLibrary
from control_plane.policy.ports import BundleStore, DecisionReader, PolicyEngine, PolicyEngines
from control_plane.policy.trial import TrialResult, load_rules, try_bundle
from shared.canonical import canonical_json, parse_strict
from shared.clock import Clock
from shared.digests import Digest, sha256_digest
from shared.errors import InvalidInputError, MalformedError, NotFoundError, ResourceExhaustedError
from shared.ids import DECISION, TenantId, parse_id
from shared.policy_bundle import check_files

DEFAULT_REPLAYED: Final = 200
MAX_REPLAYED: Final = 1000
REPLAY_TIME: Final = timedelta(seconds=10)
"""Then a replay ends where it is."""
MAX_TRIALS: Final = 2
"""At once in one replica: each keeps a core busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A bundle to be tried: published, or only files."""

    ref: BundleRef | None = None
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One question to a candidate."""

    question: str
    input: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedAnswer:
    """An answer and how long it took."""

    answer: Answer
    took: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of a trial."""

    results: tuple[TrialResult, ...]
    answers: tuple[TimedAnswer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a candidate would have decided otherwise."""

    replayed: int
    changed: tuple[tuple[RecordedDecision, TimedAnswer], ...]
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reevaluated:
    """A decision made again."""

    decision: RecordedDecision
    again: TimedAnswer
    same: bool


class PolicyReview:
    """What answers questions about policy."""

    def __init__(
        self,
        *,
        database: Database,
        store: BundleStore,
        decisions: DecisionReader,
        engines: PolicyEngines,
        library: PolicyLibrary,
        clock: Clock,
    ) -> None:
        self._database = database
        self._store = store
        self._decisions = decisions
        self._engines = engines
        self._library = library
        self._clock = clock
        self._trials = 0

    async def test(self, subject: Subject, candidate: Candidate, cases: Sequence[Case]) -> Tried:
        """Run a candidate's tests and probes and answer the cases with it.

        Raises:
            PermissionDeniedError: The subject is of another tenant than the installation's own.
            NotFoundError: There is no such bundle.
            MalformedError, PackageTooLargeError, PackageTruncatedError: The files can be no bundle.
            PolicyInvalidError: The engine does not take it.
            InvalidInputError: There is no such question, or an input is no JSON object.
            ResourceExhaustedError: Others try bundles at the moment.
        """
        questions = [(question_of(case.question), _canonical(case.input)) for case in cases]
        async with self._trial():
            files, engine = await self._load(subject, candidate)
            results = await try_bundle(self._engines, files, engine)
            answers = [await self._timed(engine, question, text) for question, text in questions]
        return Tried(results=results, answers=tuple(answers))

    async def replay(self, subject: Subject, candidate: Candidate, *, question: str, limit: int) -> Replayed:
        """Answer the tenant's newest decisions with a candidate and return those that change.

        Raises:
            As `test`.
        """
        if question:
            question_of(question)
        wanted = limit or DEFAULT_REPLAYED
        if wanted > MAX_REPLAYED:
            raise InvalidInputError(f"limit is {limit}, at most {MAX_REPLAYED} are possible")
        ends = self._clock.monotonic() + REPLAY_TIME.total_seconds()
        async with self._trial():
            _, engine = await self._load(subject, candidate)
            replayed, changed = 0, list[tuple[RecordedDecision, TimedAnswer]]()
            async for decision in self._newest(subject.tenant_id, question, wanted):
                if self._clock.monotonic() >= ends:
                    return Replayed(replayed=replayed, changed=tuple(changed), truncated=True)
                again = await self._again(engine, decision)
                replayed += 1
                if not is_same(decision, again.answer):
                    changed.append((decision, again))
        return Replayed(replayed=replayed, changed=tuple(changed), truncated=False)

    async def decision(self, tenant_id: TenantId, decision_id: str) -> RecordedDecision:
        """Return a decision.

        Raises:
            InvalidInputError: The id is not one.
            NotFoundError: The tenant has no such decision.
        """
        return await self._decisions.get(tenant_id, parse_id(DECISION, decision_id))

    async def decisions(
        self,
        tenant_id: TenantId,
        *,
        question: str,
        allowed: bool | None,
        page_size: int,
        page_token: str,
    ) -> Page[RecordedDecision]:
        """Return a page, newest first; a size of zero means 50.

        Raises:
            InvalidInputError: The page token is not one of ours, or the page is larger than 500.
        """
        if page_size > MAX_PAGE_SIZE:
            raise InvalidInputError(f"page_size is {page_size}, at most {MAX_PAGE_SIZE} are possible")
        return await self._decisions.list(
            tenant_id,
            question=question,
            allowed=allowed,
            page_size=page_size or DEFAULT_PAGE_SIZE,
            page_token=page_token,
        )

    async def reevaluate(self, tenant_id: TenantId, decision_id: str) -> Reevaluated:
        """Make a decision again with the bundle of its time.

        Raises:
            InvalidInputError: The id is not one.
            NotFoundError: The tenant has no such decision, or its bundle is not kept.
            PolicyInvalidError: The engine in use does not take that bundle any more.
            ResourceExhaustedError: Others try bundles at the moment.
        """
        decision = await self.decision(tenant_id, decision_id)
        async with self._trial():
            bundle = await self._bundle_of(decision)
            engine = await load_rules(self._engines, bundle.files, bundle.digest)
            again = await self._again(engine, decision)
        return Reevaluated(decision=decision, again=again, same=is_same(decision, again.answer))

    async def _bundle_of(self, decision: RecordedDecision) -> BundleRecord:
        async with self._database.transaction() as tx:
            bundle = await self._store.find(tx, decision.policy_digest)
        if bundle is None:
            raise NotFoundError(
                f"policy {decision.policy_digest} of decision {decision.decision_id} is not kept",
                hint="bundles are kept since schema 0011; older decisions cannot be made again",
            )
        return bundle

    async def _load(self, subject: Subject, candidate: Candidate) -> tuple[Mapping[str, bytes], PolicyEngine]:
        self._library.require_home(subject)
        files, digest = candidate.files, Digest("")
        if candidate.ref is not None:
            bundle = await self._library.get(subject, candidate.ref)
            files, digest = bundle.files, bundle.digest
        check_files(files)
        if not digest:
            digest = sha256_digest(
                canonical_json({path: sha256_digest(text) for path, text in files.items()})
            )
        return files, await load_rules(self._engines, files, digest)

    async def _newest(
        self, tenant_id: TenantId, question: str, limit: int
    ) -> AsyncIterator[RecordedDecision]:
        token, left = "", limit
        while left > 0:
            page = await self._decisions.list(
                tenant_id,
                question=question,
                allowed=None,
                page_size=min(left, DEFAULT_REPLAYED),
                page_token=token,
            )
            for decision in page.items:
                yield decision
            left -= len(page.items)
            token = page.next_page_token
            if not token:
                return

    async def _again(self, engine: PolicyEngine, decision: RecordedDecision) -> TimedAnswer:
        return await self._timed(engine, Question(decision.question), decision.input.decode())

    async def _timed(self, engine: PolicyEngine, question: Question, input_json: str) -> TimedAnswer:
        await asyncio.sleep(0)  # others are served between two evaluations
        began = self._clock.monotonic()
        answer = await ask(engine, question, input_json)
        return TimedAnswer(answer=answer, took=timedelta(seconds=self._clock.monotonic() - began))

    @asynccontextmanager
    async def _trial(self) -> AsyncIterator[None]:
        if self._trials >= MAX_TRIALS:
            raise ResourceExhaustedError(f"{MAX_TRIALS} policies are tried on this replica at the moment")
        self._trials += 1
        try:
            yield
        finally:
            self._trials -= 1


def is_same(decision: RecordedDecision, answer: Answer) -> bool:
    """Whether an answer is the recorded one, granted limits included where they were recorded."""
    if (decision.allowed, decision.reason) != (answer.allowed, answer.reason):
        return False
    digest = answer.result_digest(Question(decision.question))
    return not decision.result_digest or decision.result_digest == digest


def question_of(text: str) -> Question:
    """Return the question of this name.

    Raises:
        InvalidInputError: There is none.
    """
    try:
        return Question(text)
    except ValueError as error:
        raise InvalidInputError(f"{text[:64]!r} is no question: {', '.join(Question)}") from error


def _canonical(content: bytes) -> str:
    try:
        return canonical_json(parse_strict(content)).decode()
    except MalformedError as error:
        raise InvalidInputError(f"input: {error}") from error
