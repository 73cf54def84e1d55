"""The Rego that ships, by OPA's own tools: its tests, strict checks and formatting."""

import subprocess
from pathlib import Path

import pytest

import control_plane.policy
import data_plane.orders
from tests.fixtures.opa import opa_binary

BUILTIN = Path(control_plane.policy.__file__).with_name("builtin.rego")
ACCEPT_ORDER = Path(data_plane.orders.__file__).with_name("accept_order.rego")
TESTS = Path(__file__).parents[2] / "policy"
LIMIT_SECONDS = 120


def opa(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [opa_binary(), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)


def test_its_tests_pass_and_cover_it(tmp_path):
    (tmp_path / "data.json").write_text('{"operator": {"allowed_http": []}, "tenants": {}}')
    done = opa("test", TESTS, BUILTIN, tmp_path / "data.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: 15/15" in done.stdout


@pytest.mark.parametrize("path", [BUILTIN, ACCEPT_ORDER, TESTS], ids=lambda path: path.name)
def test_it_passes_strict_checks_and_is_formatted(path):
    files = [path] if path.is_file() else [path, BUILTIN]
    done = opa("check", "--strict", *files)
    assert done.returncode == 0, done.stderr
    assert (opa("fmt", "--diff", path).stdout, opa("fmt", "--list", path).stdout) == ("", "")


def test_a_broken_test_of_it_is_noticed(tmp_path):
    broken = tmp_path / "builtin.rego"
    broken.write_text(BUILTIN.read_text().replace('"caller"}', '"caller", "operator"}'))
    assert opa("test", TESTS, broken).returncode != 0
