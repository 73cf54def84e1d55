"""Bundles for the OPA servers of docker-compose.yml: ours follow upgrades, those of the operator stay."""

import importlib.util
import json
import tarfile
from pathlib import Path

import pytest

from control_plane.policy.builtin import builtin_policy

PATH = Path(__file__).resolve().parents[3] / "docker" / "first_run.py"

SERVERS = ["opa-1", "opa-2"]


@pytest.fixture(scope="module")
def first_run():
    spec = importlib.util.spec_from_file_location("first_run", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def revision(file):
    with tarfile.open(file) as archive:
        content = archive.extractfile(".manifest")
        return json.load(content)["revision"]


def test_missing_bundles_are_of_the_builtin_policy(first_run, tmp_path):
    assert first_run.policy(tmp_path, SERVERS) == 0
    assert {revision(tmp_path / f"{one}.tar.gz") for one in SERVERS} == {builtin_policy().digest}


def test_ours_follow_what_agents_may_call(first_run, tmp_path, monkeypatch):
    first_run.policy(tmp_path, SERVERS)
    monkeypatch.setenv("AF_CONTROL_ALLOWED_HTTP", '["GET https://api.example.test/"]')
    first_run.policy(tmp_path, SERVERS)
    now = builtin_policy(["GET https://api.example.test/"]).digest
    assert {revision(tmp_path / f"{one}.tar.gz") for one in SERVERS} == {now}


@pytest.mark.parametrize("is_first", [True, False], ids=["before ours", "after ours"])
def test_one_of_the_operator_stays(first_run, tmp_path, is_first):
    if not is_first:
        first_run.policy(tmp_path, SERVERS)
    (tmp_path / "opa-1.tar.gz").write_bytes(b"the operator's")
    first_run.policy(tmp_path, SERVERS)
    assert (tmp_path / "opa-1.tar.gz").read_bytes() == b"the operator's"
    assert revision(tmp_path / "opa-2.tar.gz") == builtin_policy().digest
