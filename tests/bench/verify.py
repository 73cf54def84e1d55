"""What verifying a receipt file costs: ``python -m tests.bench.verify``. Writes build/bench/verify.json.

In one process, offline, after its start: three files of different kinds, each parsed and verified whole.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from shared.receipt_file import encode_receipt_file
from shared.verification.checks import verify_receipt_file
from shared.verification.trust import ReceiptTrust
from tests.bench.report import Figure, measured, median, publish, quantile
from tests.builders.receipt_files import Scene, calling, succeeded, trapped, trust

REPEATS: Final = 5
VERIFICATIONS: Final = 200
BAR_MS: Final = 5.0
START_SECONDS: Final = 60

FILES: Final[dict[str, Callable[[], Scene]]] = {
    "a run that succeeded": succeeded,
    "a run that trapped": trapped,
    "a run with host calls and a parent": calling,
}


def timed(data: bytes, trusted: ReceiptTrust) -> list[float]:
    """Return the milliseconds of each verification."""
    took = []
    for _ in range(VERIFICATIONS):
        begun = time.perf_counter()
        verification = verify_receipt_file(data, trusted)
        took.append((time.perf_counter() - begun) * 1e3)
        if verification.failed is not None:
            raise SystemExit(f"check {verification.failed.number} failed: {verification.failed.words}")
    return took


def verifying(name: str, make: Callable[[], Scene]) -> list[Figure]:
    """Verify one file again and again."""
    data, trusted = encode_receipt_file(make().file()), trust(quorum=2 if make is calling else 0)
    timed(data, trusted)
    runs = [timed(data, trusted) for _ in range(REPEATS)]
    halves, tails = [quantile(run, 0.5) for run in runs], [quantile(run, 0.99) for run in runs]
    return [
        measured(
            f"{name}, {len(data) / 1024:.0f} KiB, p50",
            halves,
            "ms",
            bar=f"≤ {BAR_MS:g} ms",
            bar_ok=median(halves) <= BAR_MS,
        ),
        measured(f"{name}, p99", tails, "ms"),
    ]


def starting() -> Figure:
    """Start Python with the verifier in it, and end."""
    took = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        command = [sys.executable, "-c", "import shared.verification.checks"]
        subprocess.run(command, check=True, timeout=START_SECONDS)
        took.append((time.perf_counter() - begun) * 1e3)
    return measured("the start of a process with the verifier in it", took, "ms")


def main() -> int:
    figures = [figure for name, make in FILES.items() for figure in verifying(name, make)]
    return publish("verify", [*figures, starting()])


if __name__ == "__main__":
    sys.exit(main())
