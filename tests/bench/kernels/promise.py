"""What the sandbox may cost compute kernels, as figures of a report."""

from collections.abc import Sequence
from typing import Final

from shared.manifest import Profile
from tests.bench.kernels.measure import REPEATS, Timing, geometric_mean
from tests.bench.report import TIMES, Figure

MEAN_BAR: Final = 1.18
WORST_BAR: Final = 1.8
METERED: Final = {
    Profile.DETERMINISTIC: "fuel-metered (profile deterministic)",
    Profile.PORTABLE: "fuel-metered and canonical NaN (profile portable)",
}


def figures_of(timings: Sequence[Timing]) -> list[Figure]:
    """Return the promised figures first, then one for each kernel."""
    mean = geometric_mean([timing.ratio for timing in timings])
    peer = geometric_mean([timing.wasmtime_ratio for timing in timings])
    interleaved = geometric_mean([timing.interleaved_ratio for timing in timings])
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
        Figure(
            figure="the same mean, guest compiled with vector loops interleaved by four",
            value=interleaved,
            unit=TIMES,
            reference="plain -O3",
            reference_value=mean,
            repeats=REPEATS,
        ),
        *(
            Figure(
                figure=f"the same mean, {what}",
                value=mean * geometric_mean([timing.cost_of(profile) for timing in timings]),
                unit=TIMES,
                reference="the default profile",
                reference_value=mean,
                repeats=REPEATS,
            )
            for profile, what in METERED.items()
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
