"""Builds the guests of the tests from C and WAT, and records their digests: `python -m tests.guests.build`.

The .wasm files are committed, so that tests need no compiler; a test compares them with the digests.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

import wasmtime

HERE = Path(__file__).resolve().parent
DIGESTS = HERE / "SHA256SUMS"
# zig's default shadow stack is 16 MiB, which every instance would carry.
FLAGS = ["--target=wasm32-wasi", "-O2", "-s", "-Wl,-z,stack-size=131072"]


def main() -> None:
    """Build every .c beside this file and every .wat of limits/."""
    for source in sorted(HERE.glob("*.c")):
        target = source.with_suffix(".wasm")
        subprocess.run([sys.executable, "-m", "ziglang", "cc", *FLAGS, "-o", target, source], check=True)
        target.chmod(0o644)
    for source in sorted(HERE.glob("limits/*.wat")):
        source.with_suffix(".wasm").write_bytes(wasmtime.wat2wasm(source.read_text()))
    DIGESTS.write_text(digests())


def digests() -> str:
    """Return a line for each source and each module, as sha256sum writes it."""
    sources = sorted([*HERE.glob("*.c"), *HERE.glob("limits/*.wat")])
    paths = [path for source in sources for path in (source, source.with_suffix(".wasm"))]
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(HERE)}\n" for path in paths
    )


if __name__ == "__main__":
    main()
