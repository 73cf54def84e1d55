"""Measures the kernels alone: ``python -m tests.bench.kernels [NAME …]``. Exits 1 when a bar is missed."""

import asyncio
import sys

from tests.bench.kernels.build import build, kernel_names
from tests.bench.kernels.measure import time_kernels
from tests.bench.kernels.promise import figures_of
from tests.bench.report import publish


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
