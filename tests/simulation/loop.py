"""An event loop whose clock jumps to the next timer, and processes on it that can be paused and killed.

Nothing real is awaited: no socket, no thread, no sleep. A process is the context in which its tasks run: every
task, timer and callback inherits it, so a killed process simply never runs again, as after SIGKILL, and a paused
one runs later, as after SIGSTOP and SIGCONT.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, ContextVar, copy_context
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from tests.fakes.clock import START

MAX_STEPS = 300_000
"""Of one life: a hundred times what one takes."""


class DeadlockError(Exception):
    """Nothing will ever happen again, or the same happens without end."""


class ProcessState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"


_process: ContextVar["Process | None"] = ContextVar("process", default=None)


def current_process() -> "Process | None":
    """The process whose code runs now; None outside of all."""
    return _process.get()


class Process:
    """Everything that one process of the simulated system runs."""

    def __init__(self, loop: "VirtualLoop", name: str) -> None:
        self.name = name
        self.state = ProcessState.RUNNING
        self.resumed_at = -1.0
        self._loop = loop
        self._held: deque[asyncio.Handle] = deque()
        self.context: Context = copy_context()
        self.context.run(_process.set, self)

    @property
    def is_running(self) -> bool:
        return self.state is ProcessState.RUNNING

    @property
    def is_alive(self) -> bool:
        return self.state is not ProcessState.DEAD

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Start a task of this process; it fails for no reason that its caller does not know."""
        task = self._loop.create_task(work, context=self.context.copy())
        task.add_done_callback(self._look_at)
        return task

    def _look_at(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and task.exception() is not None and self._loop.task_failed is not None:
            self._loop.task_failed(self, task.exception())

    def soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Call something in this process."""
        self._loop.call_soon(call, *arguments, context=self.context)

    def kill(self) -> None:
        """Never run again; no ``finally`` runs."""
        self.state = ProcessState.DEAD

    def pause(self) -> None:
        if self.state is ProcessState.RUNNING:
            self.state = ProcessState.PAUSED

    def resume(self) -> None:
        """Go on with everything that became due meanwhile, in its order."""
        if self.state is ProcessState.PAUSED:
            self.state = ProcessState.RUNNING
            self.resumed_at = self._loop.time()
            self._loop.requeue(self._held)
            self._held = deque()

    def hold(self, handle: asyncio.Handle) -> None:
        # Kept after a kill too: a task that is thrown away would run its ``finally``.
        self._held.append(handle)

    def release(self) -> deque[asyncio.Handle]:
        """Give back what was held, to take the world down."""
        held, self._held = self._held, deque()
        return held


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs handles in the order in which they become due; time passes only when nothing is ready."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual_now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        self._ends = False
        self.steps = 0
        self.task_failed: Callable[[Process, BaseException | None], None] | None = None

    def time(self) -> float:
        return self._virtual_now

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: object,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As of every loop, on a heap that compares numbers: what is due at one moment keeps its order."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, handle))
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: object,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._virtual_now + delay, callback, *args, context=context)

    def at(self, delay: float, call: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
        """Call later, outside of all processes: the network, the disk and the database go on by themselves."""
        return self.call_at(self._virtual_now + delay, call, *arguments, context=_NOBODY)

    def requeue(self, handles: Sequence[asyncio.Handle] | deque[asyncio.Handle]) -> None:
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """There are no threads: it runs at once."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - handed to the caller, as a thread would
            done.set_exception(error)
        return done

    def take_down(self, processes: Sequence[Process]) -> None:
        """Cancel every task, those of dead processes too, so that nothing is left for the collector."""
        self._ends = True
        self.task_failed = None
        self.set_exception_handler(lambda _loop, _context: None)
        for _ in range(5):
            for process in processes:
                self.requeue(process.release())
            left = [task for task in asyncio.all_tasks(self) if not task.done()]
            if not left:
                return
            for task in left:
                task.cancel()
            self.run_until_complete(self._idle())
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    async def _idle(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    # --- what BaseEventLoop asks of its children

    def _run_once(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]
        timers = self._timers
        if self.steps > MAX_STEPS and not self._ends:
            raise DeadlockError(f"{self.steps} steps were taken by second {self._virtual_now:.3f}")
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not ready:
            if not timers:
                raise DeadlockError("nothing will ever happen again")
            self._virtual_now = max(self._virtual_now, timers[0][0])
        while timers and timers[0][0] <= self._virtual_now:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_process)
            if process is not None and process.state is not ProcessState.RUNNING and not self._ends:
                process.hold(handle)
                continue
            self.steps += 1
            handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers leave the heap when they come up."""

    def _process_events(self, event_list: object) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There is no thread to wake."""


_NOBODY = Context()


class WorldClock:
    """A `Clock` on the loop's time; `offset` is how wrong its wall clock is."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.offset = timedelta(0)

    def now(self) -> datetime:
        return START + timedelta(seconds=round(self._loop.time(), 6)) + self.offset

    def monotonic(self) -> float:
        return self._loop.time()
