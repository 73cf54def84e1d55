"""No limit without a guest that attacks it, no guest without a row, no page that says something else."""

import re
from dataclasses import fields
from datetime import timedelta

from data_plane.sandbox.domain import CompileLimits, Limits
from shared.manifest import GrantedLimits
from shared.outcomes import LimitName, Outcome
from tests.guests import build
from tests.guests.adversaries import ATTACKS, FOLDER, MODULE_ATTACKS
from tests.tools.limits_page import PAGE, ROOT, module_limits, page, product

WORKER_SOURCE = ROOT / "data_plane" / "engine" / "worker" / "src"


def test_every_limit_of_a_run_is_attacked_by_a_guest_that_is_killed():
    names = {f"{limit.name}_ms" if limit.name in {"wall", "cpu"} else limit.name for limit in fields(Limits)}
    attacked = {attack.limit for attack in ATTACKS if attack.outcome is Outcome.KILLED}
    assert attacked == set(LimitName) == {LimitName(name) for name in names} | {LimitName.STACK_BYTES}
    assert {limit.name for limit in fields(GrantedLimits)} <= attacked


def test_every_limit_of_a_module_is_attacked():
    of_processes = {"wall": "compile_wall", "cpu": "compile_cpu", "memory_bytes": "compile_memory"}
    names = {of_processes.get(limit.name, limit.name) for limit in fields(CompileLimits)}
    assert {attack.limit for attack in MODULE_ATTACKS} == names | set(module_limits())


def test_there_are_at_least_forty_guests_and_none_without_a_row():
    guests = {attack.guest for attack in ATTACKS}
    assert (
        guests
        == {path.stem for path in FOLDER.glob("*.wat")}
        == {path.stem for path in FOLDER.glob("*.wasm")}
    )
    assert len(guests) >= 40


def test_committed_modules_are_those_of_the_digests():
    assert build.DIGESTS.read_text() == build.digests()


def test_the_worker_assumes_the_same_defaults():
    source = (WORKER_SOURCE / "messages.rs").read_text()
    found = re.findall(r"const fn (\w+)\(\) -> u\d+ \{\s*([\d_* ]+?)\s*\}", source)
    assert len(found) == 5
    assert {name: product(value) for name, value in found}.items() <= {
        limit.name: limit.default for limit in fields(Limits) if not isinstance(limit.default, timedelta)
    }.items()


def test_the_page_is_what_the_table_says():
    assert PAGE.read_text() == page(), "run python -m tests.tools.limits_page"
