"""When a group of writes closes: when the event loop has nothing else to do. Knows not what is written.

Whoever is about to write has work waiting in the loop; once there is none, nobody comes in the next moment
and waiting costs only time. Alone that is at once. In a crowd, for which the processor is short, the loop is
never idle and groups grow by themselves, until one has waited for the linger.
"""

import asyncio
import selectors
from collections.abc import Callable
from typing import Final, TypeAlias

LINGER_S: Final = 0.05
"""Longest wait of the first of a group, in seconds: below what a crowd waits for the processor."""

Call: TypeAlias = Callable[[], None]
WhenIdle: TypeAlias = Callable[[Call], None]


class IdleLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, which can tell when it is about to wait."""

    def __init__(self) -> None:
        self._waiting = _IdleSelector(self)
        super().__init__(self._waiting)

    def when_idle(self, call: Call) -> None:
        """Call once, when no callback is ready and no socket has anything to be read."""
        self._waiting.calls.append(call)


class _IdleSelector(selectors.DefaultSelector):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self.calls: list[Call] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # Zero: callbacks are ready. Anything else: the loop would wait so long.
        if not self.calls or timeout == 0:
            return super().select(timeout)
        found = super().select(0)
        if not found:
            for call in self.calls:
                self._loop.call_soon(call)
            self.calls.clear()
        return found


def when_idle(call: Call) -> None:
    """Call once, when the running loop has nothing else to do; at once if it is a loop that cannot tell."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, IdleLoop):
        loop.when_idle(call)
    else:
        loop.call_soon(call)


class Gathering:
    """The group of one stream of writes that is forming. Used from one event loop."""

    def __init__(self, *, idle: WhenIdle = when_idle, linger: float = LINGER_S) -> None:
        self._when_idle = idle
        self._linger = linger
        self._then: Call | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked = False

    def open(self, then: Call) -> None:
        """Let a group form; `then` is called when it closes. One that forms already goes on."""
        if self._then is not None:
            return
        self._then = then
        self._timer = asyncio.get_running_loop().call_later(self._linger, self.close)
        if not self._asked:
            self._asked = True
            self._when_idle(self._idle)

    def close(self) -> None:
        """Close the group now: it is full. Without one nothing happens."""
        then, self._then = self._then, None
        if self._timer is not None:
            self._timer.cancel()
        if then is not None:
            then()

    def _idle(self) -> None:
        self._asked = False
        self.close()
