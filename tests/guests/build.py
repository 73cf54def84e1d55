"""Builds the guests of the tests from C, and records their digests: `python tests/guests/build.py`.

The .wasm files are committed, so that tests need no compiler; a test compares them with the digests.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DIGESTS = HERE / "SHA256SUMS"
# zig's default shadow stack is 16 MiB, which every instance would carry.
FLAGS = ["--target=wasm32-wasi", "-O2", "-s", "-Wl,-z,stack-size=131072"]


def main() -> None:
    """Build every .c beside this file."""
    lines = []
    for source in sorted(HERE.glob("*.c")):
        target = source.with_suffix(".wasm")
        subprocess.run([sys.executable, "-m", "ziglang", "cc", *FLAGS, "-o", target, source], check=True)
        target.chmod(0o644)
        lines += [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in (source, target)
        ]
    DIGESTS.write_text("".join(lines))


if __name__ == "__main__":
    main()
