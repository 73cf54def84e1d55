"""Builds every kernel with the pinned compiler at one level: for this machine, for WASI, and for WASI interleaved."""

import hashlib
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
TARGETS: Final = HERE.parents[2] / "build" / "kernels"
COMPILE_TIMEOUT: Final = 120
_COMMON: Final = ("-O3", "-s", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
# The processor's baseline, because WASM knows vectors of 128 bits and no fused multiply-add: so both sides have the
# same instructions to choose from, and their results must be equal to the last bit. One C library on both sides.
NATIVE_FLAGS: Final = (f"--target={platform.machine()}-linux-musl", "-mcpu=baseline", *_COMMON)
WASI_FLAGS: Final = ("--target=wasm32-wasi", "-msimd128", "-Wl,-z,stack-size=131072", *_COMMON)
# At -O3 the compiler lets a native loop work on several vectors at once and a WASM loop on one only. An author of a guest
# can ask for it, and so this shows what is the compiler's part. The promise is judged without it.
INTERLEAVED_FLAGS: Final = (*WASI_FLAGS, "-mllvm", "-force-vector-interleave=4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel, built."""

    name: str
    native: Path
    module: Path
    interleaved: Path


def kernel_names() -> list[str]:
    return sorted(source.stem for source in HERE.glob("*.c"))


def build(name: str, folder: Path = TARGETS) -> Kernel:
    """Return the kernel, compiled unless these sources were compiled with these flags before."""
    return Kernel(
        name=name,
        native=_compiled(name, NATIVE_FLAGS, folder, "native"),
        module=_compiled(name, WASI_FLAGS, folder, "wasm"),
        interleaved=_compiled(name, INTERLEAVED_FLAGS, folder, "wasm"),
    )


def _compiled(name: str, flags: tuple[str, ...], folder: Path, suffix: str) -> Path:
    source = HERE / f"{name}.c"
    digest = hashlib.sha256(repr((version("ziglang"), flags)).encode())
    for path in (source, HERE / "bench.h"):
        digest.update(path.read_bytes())
    target = folder / f"{name}-{digest.hexdigest()[:16]}.{suffix}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".part")
        command = [sys.executable, "-m", "ziglang", "cc", *flags, "-o", str(unfinished), str(source)]
        subprocess.run(command, check=True, timeout=COMPILE_TIMEOUT)
        unfinished.replace(target)
    return target
