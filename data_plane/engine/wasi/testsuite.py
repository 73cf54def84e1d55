# ruff: noqa: INP001 - a script beside a Rust crate, in no package
"""Run the preview 1 modules of a WebAssembly/wasi-testsuite checkout in the sandbox, as a user would.

Needs the checkout with its built modules (its branch prod/testsuite-base) and an installed `agentfactory`:

    python data_plane/engine/wasi/testsuite.py CHECKOUT

Prints a line for each module that does not do what its specification says, and counts; exit code 1
if there is one.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SUITES: Final = ("assemblyscript", "c", "rust")
FOLDER: Final = "testsuite/wasm32-wasip1"
TIMEOUT_S: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a module's JSON file says; without one, success and nothing printed that would matter."""

    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    root: str | None = None
    exit_code: int = 0
    stdout: str | None = None
    stderr: str | None = None


def read_expectation(module: Path) -> Expectation:
    """Read the JSON file beside a module (the suite's "legacy" form, which all of preview 1 uses).

    Raises:
        ValueError: it has a field this runner does not know, so that nothing is passed over in silence.
    """
    path = module.with_suffix(".json")
    if not path.exists():
        return Expectation()
    data = json.loads(path.read_text())
    expectation = Expectation(
        args=tuple(data.pop("args", ())),
        env=tuple(data.pop("env", {}).items()),
        root=data.pop("root", None),
        exit_code=data.pop("exit_code", 0),
        stdout=data.pop("stdout", None),
        stderr=data.pop("stderr", None),
    )
    if data:
        message = f"{path}: unknown fields {', '.join(data)}"
        raise ValueError(message)
    return expectation


def modules(checkout: Path) -> Iterator[Path]:
    """Yield every preview 1 module of a checkout."""
    for suite in SUITES:
        yield from sorted((checkout / "tests" / suite / FOLDER).glob("*.wasm"))


def run(module: Path, scratch: Path) -> str | None:
    """Run one module on a fresh copy of its directory, and say what it did other than specified."""
    expectation = read_expectation(module)
    command = [str(Path(sys.executable).with_name("agentfactory")), "sandbox", "run"]
    for name, value in expectation.env:
        command += ["--env", f"{name}={value}"]
    if expectation.root is not None:
        root = scratch / module.stem
        root.mkdir()
        source = module.parent / expectation.root
        # Some checkouts have no empty directories.
        if source.exists():
            shutil.copytree(source, root, dirs_exist_ok=True)
        command += ["--dir", f"{root}::/"]
    done = subprocess.run(  # noqa: S603 - the command is this project's own
        [*command, str(module), *expectation.args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode != expectation.exit_code:
        return f"exit code {done.returncode}, not {expectation.exit_code}: {done.stderr.strip()[-500:]}"
    for name, got, wanted in (
        ("stdout", done.stdout, expectation.stdout),
        ("stderr", done.stderr, expectation.stderr),
    ):
        if wanted is not None and got != wanted:
            return f"{name} {got!r}, not {wanted!r}"
    return None


def main() -> int:
    """Run all modules of the checkout named on the command line."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and one argument
        sys.stderr.write(__doc__ or "")
        return 2
    counts: dict[str, list[int]] = {}
    failed = False
    with tempfile.TemporaryDirectory(prefix="wasi-testsuite-") as scratch:
        for module in modules(Path(sys.argv[1])):
            suite = module.relative_to(sys.argv[1]).parts[1]
            (root := Path(scratch) / suite).mkdir(exist_ok=True)
            wrong = run(module, root)
            count = counts.setdefault(suite, [0, 0])
            count[0] += wrong is None
            count[1] += 1
            if wrong is not None:
                failed = True
                sys.stdout.write(f"{suite}/{module.stem}: {wrong}\n")
    for suite, (passed, total) in counts.items():
        sys.stdout.write(f"{suite}: {passed} of {total}\n")
    return int(failed or not counts)


if __name__ == "__main__":
    sys.exit(main())
