"""Receipts on their way into the database, retried one by one. Verifies nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from control_plane.executions.domain import AttemptResult
from control_plane.executions.lifecycle import Finished
from shared.errors import AgentFactoryError, ResourceExhaustedError, UnavailableError
from shared.ids import OrderBatchId  # noqa: TC001 - imports stay in one place


class Recording:
    """The receipts of one batch on their way into the database; one that cannot go there stops no other."""

    def __init__(
        self, finish: Callable[[AttemptResult], Awaitable[Finished]], results: Sequence[AttemptResult]
    ) -> None:
        self._finish = finish
        self._open: Sequence[AttemptResult] = results
        self.finished: list[Finished] = []
        self.signatures: set[OrderBatchId] = set()
        """Batches whose signatures went on record with what is finished."""
        self.failed: list[tuple[AttemptResult, Exception]] = []

    def add(self, results: Sequence[AttemptResult]) -> None:
        """Take more results along."""
        self._open = [*self._open, *results]

    async def go_on(self) -> None:
        """Record what is not recorded yet, together with what other sessions send now. Harmless to repeat.

        Raises:
            UnavailableError: The database took some of them only, or none.
            ResourceExhaustedError: Too many wait for it.
        """
        answers = await asyncio.gather(
            *(self._finish(result) for result in self._open), return_exceptions=True
        )
        again: list[AttemptResult] = []
        away: AgentFactoryError | None = None
        for result, answer in zip(self._open, answers, strict=True):
            if isinstance(answer, UnavailableError | ResourceExhaustedError):
                again.append(result)
                away = answer
            elif isinstance(answer, Exception):
                self.failed.append((result, answer))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                self.finished.append(answer)
                if result.batch is not None:
                    self.signatures.add(result.batch.batch_id)
        self._open = again
        if away is not None:
            raise away
