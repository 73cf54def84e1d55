"""How long `make demo` takes when everything is installed: the second run that the README promises."""

import subprocess
import sys
import time
from pathlib import Path

from tests.bench.report import measured, publish

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
    figure = measured("make demo, everything installed", times, "s", at_most=BAR_SECONDS)
    return publish("demo", [figure])


if __name__ == "__main__":
    sys.exit(main())
