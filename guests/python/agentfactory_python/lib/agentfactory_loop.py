"""An event loop without sockets: coroutines and timers, which is all that a sandbox has to wait for."""

import asyncio
import time
from typing import Any


class _Sleeper:
    """Stands for a selector: nothing ever becomes ready, only time passes."""

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is left that this agent could wait for")
        if timeout > 0:
            time.sleep(timeout)
        return []


class HostLoop(asyncio.BaseEventLoop):
    """Runs coroutines of one run, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Sleeper()

    def _process_events(self, event_list: list[Any]) -> None:
        del event_list

    def _write_to_self(self) -> None:
        """There is no other thread that could wake it."""


class _Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = HostLoop


def install() -> None:
    """Make `asyncio.run` use it."""
    asyncio.set_event_loop_policy(_Policy())
