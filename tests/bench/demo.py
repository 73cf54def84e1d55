"""How long `make demo` takes when everything is installed: the second run that the README promises."""

import subprocess
import sys
import time
from pathlib import Path

from tests.bench.report import Figure, median, publish, spread

ROOT = Path(__file__).resolve().parents[2]
REPEATS = 3
BAR_SECONDS = 15


def run_demo() -> float:
    started = time.perf_counter()
    subprocess.run(["make", "demo"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return time.perf_counter() - started


def main() -> int:
    run_demo()
    times = [run_demo() for _ in range(REPEATS)]
    figure = Figure(
        figure="make demo, everything installed",
        value=median(times),
        unit="s",
        bar=f"≤ {BAR_SECONDS} s",
        bar_ok=median(times) <= BAR_SECONDS,
        repeats=REPEATS,
        spread=spread(times),
    )
    return publish("demo", [figure])


if __name__ == "__main__":
    sys.exit(main())
