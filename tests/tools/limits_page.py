"""Writes docs/security/limits.md from the limits and the guests that attack them: `python -m tests.tools.limits_page`."""

from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from data_plane.sandbox.domain import STACK_BYTES, CompileLimits
from shared.limits import Limits
from shared.manifest import Profile
from shared.outcomes import LimitName, Outcome
from tests.guests.adversaries import ATTACKS, MODULE_ATTACKS, Attack

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "security" / "limits.md"
_TEST: Final = "tests/integration/sandbox/test_adversaries.py"
_HEAD: Final = f"""\
<!-- Written by `python -m tests.tools.limits_page`; a test compares. -->
# Limits, and the guests that attack them

Each guest below is a module under `tests/guests/limits/` that does nothing but pass one limit. `{_TEST}` runs each in a
real worker and asserts how the run ended, that nothing beyond any limit was used, and that the next run is well.

## Of a run

All but `stack_bytes`, which the engine fixes, are requested in agent.toml, bounded by policy and node, granted in orders
and named in receipts with what was used. Times are measured by a thread beside the guest, and the process kill of the
node stands behind it: no instruction is added to the guest's code. Only `fuel` is counted in the guest itself, and only
under the profiles deterministic and portable (docs/sandbox.md).

| limit | default | guest | what it does | outcome |
|---|---|---|---|---|
"""
_MODULES: Final = """
## Of a module

Passing one of these means that there is no artifact and nothing runs: the module is refused, and the refusal names the
limit. Compiling is done by a jailed process of its own that the kernel bounds. These modules are made when the test
runs, by `tests/guests/adversaries.py`.

| limit | default | module | what it does |
|---|---|---|---|
"""
_NOTES: Final = """
## What to know

* `table.grow` and `memory.grow` answer -1 when they are refused, and the guest may go on. When it ends without success
  after memory was refused, the limit is named; for a table that grows the engine tells nobody, so the outcome is only
  the guest's own trap. The table is held to its limit either way. It cannot be named with wasmer 7.4.2: a memory is behind
  a trait that we implement, a table is a struct of the engine, grown by a library call that compares with the maximum and
  answers -1 in one place without a hook; its size afterwards does not say whether more was asked for.
* `open_files` is refused with an errno (`EMFILE`) and named when the guest then ends without success.
* An agent that is granted none of `scratch_bytes` or of `scratch_inodes` has no folder to write to.
* `scratch_bytes` counts by how much files grow in size, holes included, and `scratch_inodes` counts names that were made.
  Neither is given back by removing or cutting files.
* `host_call_ms` is the time that a guest waits for answers; `wall_ms` runs on meanwhile. An answer that is asked for
  again with a larger buffer is no second call.
* `fuel` is charged for each block of instructions when it begins; a run that used more than it had is killed by it,
  whatever else it came to. Growing a memory or a table costs a fixed amount: what grows is bounded by `memory_bytes` and
  `table_elements`. Walls and CPU time stand behind it.
* A C program has a second stack in its own memory. Passing that one is a fault of the program (a trap), not of the call
  stack of the engine.
"""


def page() -> str:
    """Return the page as it should be."""
    defaults = {LimitName.STACK_BYTES: f"{STACK_BYTES:,}", **dict(map(_default, fields(Limits)))}
    rows = [
        f"| {f'`{limit}`' if index == 0 else ''} | {defaults[limit] if index == 0 else ''} "
        f"| `{attack.guest}`{_profile(attack)} | {attack.why} | {_outcome(attack)} |"
        for limit, attacks in groupby(ATTACKS, key=lambda attack: attack.limit)
        for index, attack in enumerate(attacks)
    ]
    modules = [
        f"| `{attack.limit}` | {_module_default(attack.limit)} | `{attack.name}` | {attack.why} |"
        for attack in MODULE_ATTACKS
    ]
    return _HEAD + "\n".join(rows) + "\n" + _MODULES + "\n".join(modules) + "\n" + _NOTES


def module_limits() -> dict[str, int]:
    """Return what the engine's source bounds of a module's shape, by the name of the limit."""
    source = (ROOT / "data_plane" / "engine" / "module" / "src" / "lib.rs").read_text()
    lines = [line for line in source.splitlines() if line.startswith("pub const MAX_")]
    named = (line.removeprefix("pub const MAX_").rstrip(";").split(": usize = ") for line in lines)
    return {name.lower(): product(value) for name, value in named}


def product(text: str) -> int:
    """Return what a Rust constant such as `64 * 1024` comes to."""
    value = 1
    for factor in text.split("*"):
        value *= int(factor)
    return value


def _default(limit: Any) -> tuple[LimitName, str]:
    return LimitName(limit.name), f"{limit.default:,}"


def _module_default(limit: str) -> str:
    shape = module_limits()
    if limit in shape:
        return f"{shape[limit]:,}"
    limits = CompileLimits()
    match limit:
        case "compile_wall":
            return f"{limits.wall.total_seconds():.0f} s"
        case "compile_cpu":
            return f"{limits.cpu.total_seconds():.0f} s"
        case "compile_memory":
            return f"{limits.memory_bytes:,} bytes"
        case _:
            return f"{getattr(limits, limit):,}"


def _profile(attack: Attack) -> str:
    return "" if attack.profile is Profile.DEFAULT else f", {attack.profile}"


def _outcome(attack: Attack) -> str:
    return (
        f"killed by `{attack.limit}`" if attack.outcome is Outcome.KILLED else f"{attack.outcome}, see below"
    )


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
