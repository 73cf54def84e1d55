"""No limit without a guest that attacks it, no guest without a row, no page that says something else."""

from dataclasses import fields

from data_plane.sandbox.domain import CompileLimits
from shared.limits import Limits
from shared.outcomes import LimitName, Outcome
from tests.guests import build
from tests.guests.adversaries import ATTACKS, FOLDER, MODULE_ATTACKS
from tests.tools.limits_page import PAGE, ROOT, module_limits, page

WORKER_SOURCE = ROOT / "data_plane" / "engine" / "worker" / "src"


def test_every_limit_of_a_run_is_attacked_by_a_guest_that_is_killed():
    names = {limit.name for limit in fields(Limits)}
    attacked = {attack.limit for attack in ATTACKS if attack.outcome is Outcome.KILLED}
    assert attacked == set(LimitName) == {LimitName(name) for name in names} | {LimitName.STACK_BYTES}


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


def test_the_page_is_what_the_table_says():
    assert PAGE.read_text() == page(), "run python -m tests.tools.limits_page"
