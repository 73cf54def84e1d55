"""Many executions of one caller at once: what `ExecutionService.execute` does, without a task for each.

Those that are not new (repeats, an agent that has just changed) go the ordinary way, one by one.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import ExitStack, aclosing
from typing import Any

from control_plane.executions.acceptor import Acceptor
from control_plane.executions.completions import Completions, CrowdWatch
from control_plane.executions.domain import Accepted, AcceptOutcome, NewExecution
from control_plane.executions.lifecycle import Execution
from control_plane.executions.ports import ExecutionStore
from control_plane.executions.service import ExecutionService, RunRequest
from control_plane.policy.domain import Subject
from shared.errors import AgentFactoryError, InternalError, ResourceExhaustedError
from shared.ids import ExecutionId
from shared.logs import get_logger

_log = get_logger(__name__)

Result = tuple[int, Execution | AgentFactoryError]
"""The position of a request, and its execution after its end or why it was refused."""


class Crowd:
    """Runs groups of requests. One per process."""

    def __init__(
        self,
        *,
        service: ExecutionService,
        acceptor: Acceptor,
        completions: Completions,
        store: ExecutionStore,
    ) -> None:
        self._service = service
        self._acceptor = acceptor
        self._completions = completions
        self._store = store
        self._trails = service.trails

    async def execute(
        self, subject: Subject, requests: Sequence[RunRequest], *, method: str
    ) -> AsyncGenerator[Result]:
        """Yield a result for each request, in the order of their ends. Nothing raises for one alone.

        Ending the iteration early stops the waiting only, as with `ExecutionService.execute`.
        """
        asked = [self._service.new_execution_id() for _ in requests]
        for execution_id, request in zip(asked, requests, strict=True):
            self._trails.begin(
                execution_id, subject, agent=request.agent, method=method, incoming=request.traceparent
            )
        try:
            async with aclosing(self._results(subject, requests, asked, method)) as results:
                async for position, result in results:
                    self._trails.answered(asked[position], result)
                    yield position, result
        finally:
            for execution_id in asked:
                self._trails.abandoned(execution_id)

    async def _results(
        self, subject: Subject, requests: Sequence[RunRequest], asked: Sequence[ExecutionId], method: str
    ) -> AsyncGenerator[Result]:
        prepared: list[tuple[int, NewExecution]] = []
        for position, request in enumerate(requests):
            made = await self._prepare(subject, request, method, asked[position])
            if isinstance(made, NewExecution):
                prepared.append((position, made))
            else:
                yield position, made
        ids = [item.run.execution_id for _, item in prepared]
        with ExitStack() as watching:
            try:
                watch = watching.enter_context(self._completions.watch_crowd(ids))
            except ResourceExhaustedError as full:
                for position, _ in prepared:
                    yield position, full
                return
            waiting = _Waiting(watch)
            try:
                answers = await self._stored([item for _, item in prepared])
                for (position, item), answer in zip(prepared, answers, strict=True):
                    error = answer.exception()
                    if error is not None:
                        yield position, _refusal(error)
                    elif answer.result().outcome is AcceptOutcome.NEW:
                        waiting.open[item.run.execution_id] = position
                    else:
                        self._trails.forget(item.run.execution_id)  # `execute` begins one of its own
                        waiting.add(self._single(subject, requests[position], method, position))
                async for result in self._ends(subject, waiting):
                    yield result
            finally:
                waiting.cancel()

    async def _stored(self, items: Sequence[NewExecution]) -> "list[asyncio.Future[Accepted]]":
        """Return what became of each; all have ended."""
        commits = [self._trails.of(item.run.execution_id).part("commit") for item in items]
        answers = [self._acceptor.enqueue(item) for item in items]
        if answers:
            await asyncio.wait(answers)
        for commit in commits:
            commit.end(together=len(answers))
        return answers

    async def _prepare(
        self, subject: Subject, request: RunRequest, method: str, execution_id: ExecutionId
    ) -> NewExecution | AgentFactoryError:
        try:
            return await self._service.prepare(subject, request, method=method, execution_id=execution_id)
        except Exception as error:  # noqa: BLE001 - one broken request must not end the others
            return _refusal(error)

    async def _single(self, subject: Subject, request: RunRequest, method: str, position: int) -> Result:
        try:
            return position, await self._service.execute(subject, request, method=method)
        except Exception as error:  # noqa: BLE001 - one broken request must not end the others
            return position, _refusal(error)

    async def _ends(self, subject: Subject, waiting: "_Waiting") -> AsyncGenerator[Result]:
        while waiting.open or waiting.singles:
            changed = await waiting.watch.changed()
            for single in waiting.take_done():
                yield single.result()
            for execution_id, known in changed:
                if execution_id not in waiting.open:
                    continue
                try:
                    execution = known or await self._store.get(subject.tenant_id, execution_id)
                except Exception as error:  # noqa: BLE001 - one that cannot be read must not end the others
                    yield waiting.open.pop(execution_id), _refusal(error)
                    continue
                if execution.state.is_terminal:
                    yield waiting.open.pop(execution_id), execution


class _Waiting:
    """What a crowd still waits for."""

    def __init__(self, watch: CrowdWatch) -> None:
        self.watch = watch
        self.open: dict[ExecutionId, int] = {}
        self.singles: set[asyncio.Task[Result]] = set()

    def add(self, single: Coroutine[Any, Any, Result]) -> None:
        task = asyncio.create_task(single)
        self.singles.add(task)
        task.add_done_callback(lambda _: self.watch.wake())

    def take_done(self) -> list[asyncio.Task[Result]]:
        done = [task for task in self.singles if task.done()]
        self.singles.difference_update(done)
        return done

    def cancel(self) -> None:
        for task in self.singles:
            task.cancel()


def _refusal(error: BaseException) -> AgentFactoryError:
    if isinstance(error, AgentFactoryError):
        return error
    if not isinstance(error, Exception):
        raise error
    _log.error("an execution of a crowd failed", exc_info=error)
    return InternalError("internal error")
