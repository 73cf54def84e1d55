"""How our long-lived processes run Python: thread switches and garbage collection. Knows no service.

The event loop is asyncio's own, which tells when it is idle: libuv's (uvloop) was measured beside it and made
no difference.
"""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar

from shared.gathering import IdleLoop

T = TypeVar("T")

SWITCH_INTERVAL: Final = timedelta(microseconds=500)
"""How long one thread may keep the interpreter while another waits for it; Python's own default is 5 ms.

The loop shares the interpreter with the thread that brings receipts to the disk and with those of gRPC: each
waits that long for the other.
"""

YOUNG_OBJECTS: Final = 20_000
"""Allocations between two collections; at 64 executions in flight this saves a tenth of processor time."""


def run_process(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` as a process that shares its interpreter with threads."""
    sys.setswitchinterval(SWITCH_INTERVAL.total_seconds())
    with asyncio.Runner(loop_factory=IdleLoop) as runner:
        return runner.run(main)


@contextmanager
def stop_signals(call: Callable[[], None]) -> Iterator[None]:
    """Call it at SIGTERM and SIGINT for the length of the block, from the running loop."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def settle() -> None:
    """Call once everything is built: what lives as long as the process is left out of every collection.

    Young objects are looked at less often than by default (700): nearly everything of a request is freed by
    its reference count, and a look at a few hundred requests costs no more than one at one.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
