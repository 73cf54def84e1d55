"""The processes without policy and receipts: every part that they replace is still there to be replaced."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli.stack.children import ChildSpec
from tests.bench.peers import bare
from tests.bench.peers.bare import bare_spec, put

LIMIT_SECONDS = 60


def spec(*arguments):
    return ChildSpec(name="any", arguments=arguments, environment={}, log=Path("log"))


@pytest.mark.parametrize("plane", ["bare_control_plane", "bare_node"])
def test_the_parts_are_where_this_bench_puts_others(plane):
    """In a process of its own: the parts stay replaced."""
    code = f"from tests.bench.peers import bare; bare.{plane}()"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=LIMIT_SECONDS)


def test_a_part_that_is_gone_is_an_error():
    with pytest.raises(AttributeError, match="no gone"):
        put(bare, "gone", None)


def test_only_the_two_planes_are_started_differently():
    assert ["python", "-m", bare.__name__, "data_plane", "run"] == bare_spec(
        spec("python", "-m", "data_plane", "run")
    ).arguments
    assert bare_spec(spec("postgres", "-D", "data")).arguments == ("postgres", "-D", "data")
    assert bare_spec(spec("python", "-m", "cli.main")).arguments == ("python", "-m", "cli.main")
