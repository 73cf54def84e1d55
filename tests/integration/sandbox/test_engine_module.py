"""The Python module of the engine: reads modules, evaluates Rego, knows its worker."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import agentfactory_engine as engine
import pytest

from tests.integration.sandbox.conftest import saying, wat

POLICY = """package access
import rego.v1

default allow := false
allow if input.user in data.admins
reason := concat(" ", [input.user, "asked"])
slow if { some x in numbers.range(1, 3000); some y in numbers.range(1, 3000); x * y == -1 }
broken := to_number(input.user)
"""
DATA = json.dumps({"admins": ["alice"]})


@pytest.fixture(scope="module")
def policy():
    return engine.Policy([("access.rego", POLICY)], DATA)


def test_a_module_says_what_it_imports_exports_and_holds(probe):
    info = engine.validate_module(probe)
    assert info.module_bytes == len(probe)
    assert {entry.module for entry in info.imports} == {"wasi_snapshot_preview1"}
    kinds = {entry.name: entry.kind for entry in info.exports}
    assert (kinds["_start"], kinds["memory"]) == ("func () -> ()", "memory")
    assert info.memories[0].minimum_bytes % 65536 == 0
    assert info.functions > 10
    assert 0 < info.code_bytes < len(probe)


def test_inspecting_judges_no_imports_but_validating_does():
    module = wat('(module (import "env" "x" (func)))')
    assert engine.inspect_module(module).imports[0].kind == "func () -> ()"
    with pytest.raises(engine.InvalidModuleError, match=r"env\.x is not offered"):
        engine.validate_module(module)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 100, 30_000])
def test_cut_modules_are_refused(probe, cut):
    with pytest.raises(engine.InvalidModuleError):
        engine.inspect_module(probe[:cut] if cut != 8 else probe[:8] + b"\xff")


def test_the_size_is_bounded(probe):
    engine.validate_module(probe, max_bytes=len(probe))
    with pytest.raises(ValueError, match="the bound is"):
        engine.validate_module(probe, max_bytes=len(probe) - 1)


AGENT = '(module (memory (export "memory") 2) (func (export "_start")))'


def test_pages_that_runs_write_are_named_in_order_within_the_memory():
    module = wat(AGENT)
    for right in (range(32), (), (0, 31)):
        engine.validate_module(saying(module, right))


@pytest.mark.parametrize(
    ("pages", "cut", "why"),
    [
        ((32,), 0, "the memory begins with 131072 bytes"),
        ((1, 2**32 - 1), 0, "the memory begins with 131072 bytes"),
        ((3, 2), 0, "do not ascend"),
        ((3, 3), 0, "do not ascend"),
        ((1, 2), 1, "ends within a number"),
        (range(4097), 0, "the bound is 4096"),
    ],
    ids=["outside", "far outside", "backwards", "twice", "cut", "many"],
)
def test_pages_that_are_wrong_are_refused(pages, cut, why):
    with pytest.raises(engine.InvalidModuleError, match=why):
        engine.validate_module(saying(wat(AGENT), pages, cut=cut))


def test_pages_are_named_once():
    module = saying(saying(wat(AGENT), (1,)), (2,))
    with pytest.raises(engine.InvalidModuleError, match=r"agentfactory\.pages is there twice"):
        engine.validate_module(module)


def test_a_long_import_name_does_not_flood_the_message():
    module = wat(f'(module (import "{"x" * 5000}" "f" (func)))')
    with pytest.raises(engine.InvalidModuleError) as caught:
        engine.validate_module(module)
    assert len(str(caught.value)) < 300


def test_a_policy_decides_by_input_and_data(policy):
    assert policy.evaluate("data.access.allow", '{"user": "alice"}') == "true"
    assert policy.evaluate("data.access.allow", '{"user": "bob"}') == "false"
    assert json.loads(policy.evaluate("data.access.reason", '{"user": "bob"}')) == "bob asked"


@pytest.mark.parametrize(
    ("rule", "input_json", "why"),
    [
        ("data.access.none", "{}", "data.access.none"),
        ("data.access.reason", "{}", "undefined"),
        ("data.access.broken", '{"user": "bob"}', "data.access.broken"),
        ("data.access.allow", "{", "input"),
        ("data.access.slow", "{}", "time"),
        ("not a rule", "{}", "not a rule"),
        ("x" * 2000, "{}", "the bound is"),
    ],
)
def test_what_has_no_answer_is_an_error_never_an_allow(policy, rule, input_json, why):
    with pytest.raises(engine.PolicyError, match=why):
        policy.evaluate(rule, input_json)


@pytest.mark.parametrize(
    ("source", "data"), [("package", "{}"), ("", "{}"), (POLICY, "[]"), (POLICY, "nope")]
)
def test_a_policy_that_cannot_be_read_is_refused_at_once(source, data):
    with pytest.raises(engine.PolicyError):
        engine.Policy([("access.rego", source)], data)


def test_threads_share_a_policy_without_sharing_decisions(policy):
    """A shared interpreter gave other threads' answers in another binding of Rego: each thread here asks for one user."""
    barrier = threading.Barrier(4)

    def ask(index: int) -> set[str]:
        user = "alice" if index % 2 else "bob"
        barrier.wait()
        return {policy.evaluate("data.access.allow", json.dumps({"user": user})) for _ in range(500)}

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(4))) == [{"false"}, {"true"}, {"false"}, {"true"}]


def test_the_worker_of_this_installation_is_found_and_executable():
    assert os.access(engine.worker_path(), os.X_OK)
    assert Path(engine.worker_path()).is_absolute()
