"""Owner of the tasks that dispatch starts. A task that fails is logged and takes nobody else with it."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any, Self

import structlog

from shared.errors import UnavailableError

logger = structlog.get_logger(__name__)


class Background:
    """A task group that is open while dispatch runs; leaving it cancels what is left."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        group, self._group = self._group, None
        assert group is not None
        for task in tuple(self._tasks):
            task.cancel()
        await group.__aexit__(kind, error, trace)

    @property
    def is_open(self) -> bool:
        return self._group is not None

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Start a task that ends at the latest when dispatch stops.

        Raises:
            UnavailableError: Dispatch does not run.
        """
        if self._group is None:
            work.close()
            raise UnavailableError("dispatch is stopped", hint="ask another replica")
        # It works for every tenant, whoever's call happened to start it.
        task = self._group.create_task(_guarded(work, name), name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _guarded(work: Coroutine[Any, Any, None], name: str) -> None:
    try:
        await work
    except UnavailableError as error:
        # Expected while the database or a key is away; every such task has a poll behind it.
        logger.warning("background task gave up", task=name, error=str(error))
    except Exception:  # one task's bug must not end the group
        logger.exception("background task failed", task=name)
