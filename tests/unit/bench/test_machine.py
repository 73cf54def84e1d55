"""How much of the machine others used."""

import os
import subprocess
import sys

import pytest

from tests.bench.peers.machine import Used, busy_ticks

STAT = """cpu  100 20 30 4000 500 6 7 80 90 10
cpu0 1 1 1 1 1 1 1 1 1 1
"""
SPIN = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass"


def test_idle_waiting_stolen_and_guest_time_is_not_busy():
    assert busy_ticks(STAT) == 100 + 20 + 30 + 6 + 7


@pytest.mark.parametrize(
    ("before", "after", "others"),
    [((10, 10, 5), (12, 14, 8), 0.5), ((10, 10, 5), (12, 14, 9), 0.0), ((10, 10, 5), (12, 14, 9.5), 0.0)],
)
def test_others_had_what_was_not_ours(before, after, others):
    def used(at, machine, ours):
        return Used(at=at, machine=machine, ours=ours)

    assert others == used(*after).others_since(used(*before))


def test_what_an_ended_child_used_is_ours():
    before = Used.now([os.getpid()])

    subprocess.run([sys.executable, "-c", SPIN], check=True, timeout=30)

    assert Used.now([os.getpid()]).ours - before.ours >= 0.5
