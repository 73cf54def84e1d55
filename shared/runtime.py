"""How our long-lived processes run Python: event loop, thread switches, collection. Knows no service."""

import asyncio
import gc
import sys
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, Final, TypeVar

import uvloop

T = TypeVar("T")

SWITCH_INTERVAL: Final = timedelta(microseconds=500)
"""How long one thread may keep the interpreter while another waits for it; Python's own default is 5 ms.

The loop shares the interpreter with the thread that brings receipts to the disk and with those of gRPC: each
waits that long for the other.
"""


def run_process(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on libuv's event loop, which takes less time for a socket than asyncio's own."""
    sys.setswitchinterval(SWITCH_INTERVAL.total_seconds())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def settle() -> None:
    """Call once everything is built: what lives as long as the process is left out of every collection."""
    gc.collect()
    gc.freeze()
