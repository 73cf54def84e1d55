"""The sum of PSS over process trees."""

import os
import subprocess
import sys

import pytest

from tests.bench.peers.memory import pss_bytes, tree, tree_bytes, trees_bytes

ROLLUP = """55d0-7ffe ---p 00000000 00:00 0                          [rollup]
Rss:               20480 kB
Pss:               10240 kB
Pss_Dirty:          4096 kB
Shared_Clean:          0 kB
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family():
    """Return the ids of a process and of its child."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process.pid, int(process.stdout.readline())
    process.communicate(timeout=10)


def test_the_proportional_share_is_read_and_not_its_dirty_part():
    assert pss_bytes(ROLLUP) == 10240 * 1024


def test_a_rollup_without_the_share_is_an_error():
    with pytest.raises(ValueError, match="no line"):
        pss_bytes("Rss: 1 kB\n")


def test_a_tree_is_a_process_and_all_below_it(family):
    parent, child = family

    assert [parent, child] == tree(parent)
    assert tree_bytes([parent]) > tree_bytes([child]) > 0


def test_a_process_under_two_roots_counts_once(family):
    parent, child = family

    assert tree_bytes([parent]) == pytest.approx(tree_bytes([parent, child]), rel=0.2)


def test_named_trees_are_told_apart(family):
    parent, _ = family

    assert {"one", "me"} == set(trees_bytes({"one": parent, "me": os.getpid()}))
