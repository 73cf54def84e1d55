"""Measures the kernels alone: ``python -m tests.bench.kernels [NAME …]``. Exits 1 when a bar is missed."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

from tests.bench.kernels.build import build, kernel_names
from tests.bench.kernels.measure import REPEATS, Timing, geometric_mean, time_kernels
from tests.bench.report import TIMES, Figure, publish

MEAN_BAR: Final = 1.18
WORST_BAR: Final = 1.8


def figures_of(timings: Sequence[Timing]) -> list[Figure]:
    """Return the promised figures first, then one for each kernel."""
    mean = geometric_mean([timing.ratio for timing in timings])
    peer = geometric_mean([timing.wasmtime_ratio for timing in timings])
    worst = max(timings, key=lambda timing: timing.ratio)
    return [
        Figure(
            figure=f"{len(timings)} kernels, sandbox / native, geometric mean",
            value=mean,
            unit=TIMES,
            reference="wasmtime-py",
            reference_value=peer,
            bar=f"≤ {MEAN_BAR}",
            bar_ok=mean <= MEAN_BAR,
            repeats=REPEATS,
        ),
        Figure(
            figure=f"worst kernel: {worst.name}",
            value=worst.ratio,
            unit=TIMES,
            reference="wasmtime-py",
            reference_value=worst.wasmtime_ratio,
            bar=f"≤ {WORST_BAR}",
            bar_ok=worst.ratio <= WORST_BAR,
            repeats=REPEATS,
        ),
        *(
            Figure(
                figure=f"kernel {timing.name} ({timing.native_ms:.1f} ms native)",
                value=timing.ratio,
                unit=TIMES,
                reference="wasmtime-py",
                reference_value=timing.wasmtime_ratio,
                repeats=REPEATS,
            )
            for timing in timings
        ),
    ]


def main() -> int:
    names = sys.argv[1:] or kernel_names()
    unknown = set(names) - set(kernel_names())
    if unknown:
        sys.stderr.write(f"no kernel {min(unknown)!r}; there are {', '.join(kernel_names())}\n")
        return 2
    kernels = [build(name) for name in names]
    return publish("kernels", figures_of(asyncio.run(time_kernels(kernels))))


if __name__ == "__main__":
    sys.exit(main())
