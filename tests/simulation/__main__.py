"""Lives of the whole system in virtual time, by the thousand: execution, lease, ledger and spool under faults.

    python -m tests.simulation --seeds 10000          live so many lives; stops at the first that breaks a rule
    python -m tests.simulation --seed 4711 --trace    live one again and show what happened
    python -m tests.simulation --mutation NAME        with a defect planted on purpose
    python -m tests.simulation --mutations            each of them in turn: the first seed that finds it

The exit code is 1 when a rule was broken; the last lines then say which, with the seed.
"""

import argparse
import os
import sys
import time

from tests.simulation.mutations import MUTATIONS
from tests.simulation.search import Tally, first_violation, lives, report

PROGRESS_SECONDS = 5.0


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=300, help="how many lives (default 300)")
    parser.add_argument("--first", type=int, default=1, help="seed of the first")
    parser.add_argument("--seed", type=int, help="live this one only")
    parser.add_argument("--mutation", choices=MUTATIONS, help="plant this defect")
    parser.add_argument("--mutations", action="store_true", help="plant each defect in turn and look for it")
    parser.add_argument("--trace", action="store_true", help="show the whole trace of the last life")
    parser.add_argument("--keep-going", action="store_true", help="go on after a rule was broken")
    arguments = parser.parse_args()
    _same_hashes()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    if arguments.seed is not None:
        seeds = range(arguments.seed, arguments.seed + 1)
    if arguments.mutations:
        return _find_all(seeds)
    tally, broken, life = Tally(), [], None
    started = told = time.monotonic()
    for life in lives(seeds, mutation=arguments.mutation):
        tally.add(life)
        if life.violation is not None:
            broken.append(life.seed)
            say(report(life, mutation=arguments.mutation, last=10**6 if arguments.trace else 120))
            if not arguments.keep_going:
                break
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            say(_summary(tally, told - started))
    if arguments.trace and life is not None and life.violation is None:
        say(life.trace.render(10**6))
        say(f"trace: {life.trace.digest()}")
    say(_summary(tally, time.monotonic() - started))
    say(f"faults: {_counts(tally.faults)}")
    say(f"ends: {_counts(tally.outcomes)}")
    say(f"signatures: {tally.unsigned} of {tally.orders} orders have a receipt and no signature on record")
    say(f"broken: {', '.join(map(str, broken)) or 'none'}")
    return 1 if broken else 0


def _find_all(seeds: range) -> int:
    missed = 0
    for name in MUTATIONS:
        life = first_violation(seeds, mutation=name)
        missed += life is None
        say(f"{name}: " + ("NOT FOUND" if life is None else f"seed {life.seed}, {life.violation}"))
    return 1 if missed else 0


def _same_hashes() -> None:
    """Start again with fixed hashes of strings: the order of sets is part of a life."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])


def _summary(tally: Tally, seconds: float) -> str:
    faults = tally.faults.total()
    return (
        f"{tally.lives} lives, {faults} faults, {tally.steps} steps, {tally.seconds:.0f} simulated s in"
        f" {seconds:.1f} s: {tally.lives / seconds:.1f} lives/s, {faults / seconds:.0f} faults/s"
    )


def _counts(counter: "dict[str, int]") -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items(), key=lambda one: -one[1]))


if __name__ == "__main__":
    sys.exit(main())
