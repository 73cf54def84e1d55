"""Builds and runs the coverage-guided target of the WASI layer: libFuzzer on the stable compiler.

``cargo fuzz`` asks for a nightly one because of the sanitizers; coverage alone (LLVM's sancov pass) is there in every
compiler, and the crate has no unsafe code that a sanitizer would watch.
"""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
FUZZ: Final = ROOT / "data_plane" / "engine" / "wasi" / "fuzz"
CACHE: Final = Path(os.environ.get("AF_CACHE_DIR") or Path.home() / ".cache" / "agentfactory")
TARGET_FOLDER: Final = CACHE / "cargo-fuzz"
CORPUS: Final = CACHE / "fuzz-corpus" / "wasi"
"""What found new code in earlier runs; it only makes the next run better."""
REGRESSIONS: Final = FUZZ / "regressions"
"""Inputs that once failed; each run begins with them."""
MAX_INPUT_BYTES: Final = 1024
SLOW_SECONDS: Final = 20
_COVERAGE: Final = (
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    # One unit: otherwise the counters of some are dropped by the linker.
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
)


def build() -> None:
    """Compile the target; seconds when nothing changed, half a minute the first time."""
    manifest = ["--manifest-path", str(FUZZ / "Cargo.toml")]
    # With a target named, build scripts are compiled without the flags, which they could not be linked with.
    subprocess.run(
        ["cargo", "build", "--release", "--locked", "--quiet", "--target", _triple(), *manifest],
        check=True,
        env={**os.environ, "RUSTFLAGS": " ".join(_COVERAGE), "CARGO_TARGET_DIR": str(TARGET_FOLDER)},
    )


def run(seconds: float, found: Path) -> bool:
    """Run the target; a failing input lands in ``found``. Say whether none was found."""
    for folder in (found, CORPUS, REGRESSIONS):
        folder.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")
    binary = TARGET_FOLDER / _triple() / "release" / "calls"
    done = subprocess.run(
        [
            str(binary),
            str(CORPUS),
            str(REGRESSIONS),
            f"-max_total_time={int(seconds) if math.isfinite(seconds) else 0}",
            f"-max_len={MAX_INPUT_BYTES}",
            f"-timeout={SLOW_SECONDS}",
            "-len_control=0",
            f"-artifact_prefix={found}/wasi-",
        ],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # Trees are made and removed by the thousand.
        env={**os.environ, **({"TMPDIR": str(memory)} if memory.is_dir() else {})},
    )
    lines = done.stderr.splitlines()
    if done.returncode != 0:
        print("\n".join(lines[-40:]), file=sys.stderr)
        print(f"FOUND wasi: replay with {binary} FILE", flush=True)
        return False
    print("wasi: " + next((line for line in reversed(lines) if line.startswith("Done")), "done"), flush=True)
    return True


def _triple() -> str:
    version = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    return next(line.removeprefix("host: ") for line in version.splitlines() if line.startswith("host: "))
