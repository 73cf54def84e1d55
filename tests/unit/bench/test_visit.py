"""A visit whose peer dies ends, with the reason."""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from shared.errors import UnavailableError
from tests.bench.peers.peer import Peer
from tests.bench.peers.visit import require_disk, watched

LIMIT_SECONDS = 30


class Mortal(Peer):
    async def prepare(self, kept):
        pass

    async def start(self, running):
        await self.child(running, "worker", [sys.executable, "-c", "raise SystemExit('out of luck')"])


async def test_a_worker_that_dies_ends_the_visit_with_its_last_words(tmp_path):
    peer = Mortal(tmp_path)

    async with AsyncExitStack() as running, asyncio.timeout(LIMIT_SECONDS):
        await peer.start(running)
        with pytest.raises(UnavailableError, match="worker ended with code 1: out of luck"):
            await watched(peer, asyncio.sleep(LIMIT_SECONDS))


async def test_work_beside_processes_that_live_is_returned(tmp_path):
    assert await watched(Mortal(tmp_path), asyncio.sleep(0, 7)) == 7


def test_a_folder_in_memory_is_no_place_to_measure_durability():
    with pytest.raises(AssertionError, match="tmpfs"):
        require_disk(Path("/dev/shm"))
