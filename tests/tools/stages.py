"""Runs the stages of ``make check`` and ``make test`` in order, times them and sums up. Decides nothing else.

    python -m tests.tools.stages                  everything
    python -m tests.tools.stages --only check     one stage (repeatable)

A stage that fails does not stop the later ones: one run shows all that is wrong. The exit code is 1 when any failed.
The last line sums up pytest's own summaries: "N passed, N failed".
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from tests.tools import vulnerabilities

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
CACHE = Path(os.environ.get("AF_CACHE_DIR") or Path.home() / ".cache" / "agentfactory")
UV = CACHE / "uv-0.13.9" / "bin" / "uv"
BUF = CACHE / "buf-1.75.0" / "node_modules" / ".bin" / "buf"
KUBERNETES = Path(os.environ.get("KUBERNETES") or CACHE / "kubernetes-1.37.2" / "bin")
ENGINE = ROOT / "data_plane" / "engine"
PACKAGES = ("shared", "control_plane", "data_plane", "cli")
EXTENSION = "agentfactory-engine-python"
# One by one: together their features unify, and wasmer is compiled once more under the union.
CRATES = ("agentfactory-wasi", "agentfactory-module", "agentfactory-worker", EXTENSION)
# Workspaces of their own: their flags and lock files are not the engine's.
RANDOM_MANIFEST = ROOT / "tests" / "guests" / "random" / "Cargo.toml"
FUZZ_MANIFEST = ENGINE / "wasi" / "fuzz" / "Cargo.toml"
POSTGRES_15 = Path("/usr/lib/postgresql/15/bin/postgres")

# A stage that hangs must not hold a machine for ever; pytest bounds each test itself.
STAGE_TIMEOUT = timedelta(minutes=40)
FUZZ_TIME = timedelta(seconds=60)
# pytest's code for "no tests were collected".
NO_TESTS = 5
SUMMARY = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)")


@dataclass(slots=True, kw_only=True)
class Totals:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, summary: str) -> None:
        for count, word in SUMMARY.findall(summary):
            if word == "passed":
                self.passed += int(count)
            elif word in {"failed", "error", "errors"}:
                self.failed += int(count)
            elif word == "skipped":
                self.skipped += int(count)


@dataclass(slots=True, kw_only=True)
class Run:
    """What the stages found so far."""

    totals: Totals = field(default_factory=Totals)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    times: list[tuple[str, float]] = field(default_factory=list)

    def command(
        self,
        name: str,
        arguments: list[str],
        *,
        environment: Mapping[str, str] | None = None,
        good: tuple[int, ...] = (0,),
    ) -> int:
        """Run one command with its output passed through; a bad exit code or a time-out is a failure of ``name``."""
        print(f"\n── {name}", flush=True)
        started = time.monotonic()
        lines: list[str] = []
        child = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        watchdog = threading.Timer(STAGE_TIMEOUT.total_seconds(), child.kill)
        watchdog.start()
        assert child.stdout is not None
        for line in child.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
            del lines[:-50]
        code = child.wait()
        watchdog.cancel()
        self.times.append((name, time.monotonic() - started))
        if "pytest" in arguments:
            summary = next((line for line in reversed(lines) if re.search(r" in [\d.]+s", line)), "")
            self.totals.add(summary)
        if code not in good:
            self.failures.append(name)
        return code


def check(run: Run) -> None:
    python_files = [
        "shared",
        "control_plane",
        "data_plane",
        "cli",
        "tests",
        "examples",
        "guests",
        "protos/generate.py",
        "docker",
    ]
    paths = [path for path in python_files if (ROOT / path).exists()]
    run.command("format", [f"{BIN}/ruff", "format", "--check", "--quiet", *paths])
    run.command("lint", [f"{BIN}/ruff", "check", "--quiet", *paths])
    run.command("types", [f"{BIN}/mypy", "--no-error-summary"])
    run.command("imports", [f"{BIN}/lint-imports"])
    run.command("contract drift", [sys.executable, "protos/generate.py", "--check"])
    run.command("contract lint and breaking", [sys.executable, "protos/generate.py", "--lint", str(BUF)])
    run.command("security lint", [f"{BIN}/bandit", "-q", "-c", "pyproject.toml", "-r", *PACKAGES])
    dependencies(run)
    run.command("secrets", [sys.executable, "-m", "tests.tools.committed_secrets"])
    run.command("documentation", [sys.executable, "-m", "tests.tools.docs_site"])
    manifest = ["--manifest-path", str(ENGINE / "Cargo.toml")]
    if rust_tool(run, "fmt"):
        run.command("Rust format", ["cargo", "fmt", "--check", "--all", *manifest])
        for name, path in (("random guests", RANDOM_MANIFEST), ("fuzz", FUZZ_MANIFEST)):
            run.command(f"Rust format: {name}", ["cargo", "fmt", "--check", "--manifest-path", str(path)])
    if rust_tool(run, "clippy"):
        for crate in CRATES:
            flags = ["--release", "--locked", "--all-targets", "--quiet", "-p", crate, "--", "-D", "warnings"]
            run.command(
                f"Rust lint: {crate}", ["cargo", "clippy", *manifest, *flags], environment=cargo_environment()
            )
        lint_apart(run)


def dependencies(run: Run) -> None:
    """A missing network must not turn a good tree red, and must not look like a clean one either."""
    run.command("licences", [sys.executable, "-m", "tests.tools.licences"])
    run.command("list of what is shipped", [sys.executable, "-m", "tests.tools.sbom", str(UV)])
    look_up = [sys.executable, "-m", "tests.tools.vulnerabilities"]
    code = run.command("vulnerabilities", look_up, good=(vulnerabilities.CLEAN, vulnerabilities.NOT_AUDITED))
    if code == vulnerabilities.NOT_AUDITED:
        run.notes.append("NOT AUDITED: dependencies were not looked up; above it says which and why")


def lint_apart(run: Run) -> None:
    """What is not in the engine's workspace, in its own profile: cargo test and the fuzzer build it so too."""
    apart = {"random guests": RANDOM_MANIFEST, "fuzz": FUZZ_MANIFEST}
    if shutil.which("c++") is None:
        del apart["fuzz"]  # its libFuzzer is built on the way; the stage that fuzzes says that it is missing
    for name, path in apart.items():
        flags = ["--manifest-path", str(path), "--locked", "--all-targets", "--quiet", "--", "-D", "warnings"]
        run.command(f"Rust lint: {name}", ["cargo", "clippy", *flags], environment=cargo_environment())


def rust_tool(run: Run, name: str) -> bool:
    """Distribution packages of Rust may lack clippy and rustfmt: said aloud, not failed."""
    found = subprocess.run(["cargo", name, "--version"], check=False, capture_output=True).returncode == 0
    if not found:
        run.notes.append(
            f"cargo {name} is not installed: its check was left out (rustup component add {name})"
        )
    return found


def cargo_environment() -> dict[str, str]:
    """One profile and one target folder for build, test and clippy: another compiles wasmer again."""
    return {"CARGO_TARGET_DIR": str(CACHE / "cargo-target"), "PYO3_PYTHON": sys.executable}


def rust(run: Run) -> None:
    manifest = ["--manifest-path", str(ENGINE / "Cargo.toml")]
    for crate in CRATES:
        if crate == EXTENSION:
            continue  # it links against no libpython, so it cannot be run outside one; its tests are Python's
        arguments = ["cargo", "test", *manifest, "--release", "--locked", "--quiet", "-p", crate]
        run.command(f"Rust tests: {crate}", arguments, environment=cargo_environment())


def fuzz(run: Run) -> None:
    """Two targets side by side for a minute; beside no other stage, since many of those look at times."""
    arguments = [sys.executable, "-m", "tests.fuzz", "--seconds", str(FUZZ_TIME.seconds)]
    if shutil.which("c++") is None:
        run.notes.append("no C++ compiler, which libFuzzer is built with: the WASI layer was not fuzzed")
        arguments += ["--only", "protocol"]
    run.command("fuzz", arguments)


def servers(run: Run) -> None:
    """PostgreSQL 18 is a wheel of the lock file; 15 comes from Debian, where root may install it."""
    if POSTGRES_15.exists() or os.environ.get("AF_TEST_POSTGRES_15_BIN"):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        run.notes.append(
            "PostgreSQL 15 is not installed and this user may not install it: only 18 was tested"
        )
        return
    run.command("PostgreSQL 15", ["bash", "tests/tools/install_postgres_15.sh"])


def runtimes(run: Run) -> None:
    """The runtimes of agents, before anything that is timed: CPython's takes minutes, once for its sources."""
    run.command("runtimes of agents", [sys.executable, "guests/build.py", "javascript", "python"])


def tests(*folders: str, workers: int) -> Callable[[Run], None]:
    """Two processes: as many as the smallest machine has cores, and what waits for servers leaves it room."""

    def stage(run: Run) -> None:
        spread = ["-n", str(workers)] if workers > 1 else []
        present = [folder for folder in folders if (ROOT / folder).is_dir()]
        if not present:
            return
        run.command(
            " ".join(present),
            [sys.executable, "-m", "coverage", "run", "-m", "pytest", "-q", *spread, *present],
            good=(0, NO_TESTS),
        )

    return stage


def simulation(run: Run) -> None:
    """Not measured: it would cost half of its lives. Equal hashes make a life the same in every process."""
    arguments = [sys.executable, "-m", "pytest", "-q", "tests/simulation"]
    run.command("tests/simulation", arguments, environment={"PYTHONHASHSEED": "0"})


def platform(run: Run) -> None:
    """File by file, for their times; those of compose share what they start. No build disturbs what is timed.

    Without Docker the rest is tested yet, and the stage has failed.
    """
    run.command("Kubernetes", ["tests/platform/build_kubernetes.sh", str(KUBERNETES)])
    docker = run.command("Docker engine and images", [sys.executable, "-m", "tests.platform.prepare"])
    paths = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "platform").glob("test_*.py"))
    compose = [path for path in paths if "compose" in path]
    if docker != 0:
        run.notes.append("docker compose was NOT tested: no Docker engine with our images; above it says why")
    for files in [compose] * (docker == 0) + [[path] for path in paths if path not in compose]:
        arguments = [sys.executable, "-m", "pytest", "-q", *files]
        run.command(" ".join(files), arguments, environment={"KUBERNETES": str(KUBERNETES)})


def coverage(run: Run) -> None:
    """Fails below `fail_under` of pyproject.toml, and when nothing was measured."""
    run.command("coverage", [f"{BIN}/coverage", "combine", "--quiet"])
    run.command(
        "coverage report", [f"{BIN}/coverage", "report", "--skip-covered", "--skip-empty", "--sort=cover"]
    )


STAGES: dict[str, Callable[[Run], None]] = {
    "check": check,
    "rust": rust,
    "fuzz": fuzz,
    "servers": servers,
    "runtimes": runtimes,
    "unit": tests("tests/unit", "tests/property", workers=2),
    "simulation": simulation,
    "contract": tests("tests/contract", workers=2),
    "integration": tests("tests/integration", workers=2),
    "e2e": tests("tests/e2e", workers=2),
    "chaos": tests("tests/chaos", workers=1),
    "coverage": coverage,
    "platform": platform,
}
APART = ("platform",)
"""Run only when they are named: they need a machine of their own."""


def report(run: Run) -> int:
    print("\n── stages")
    for name, seconds in run.times:
        print(f"  {seconds:8.1f} s  {'FAILED' if name in run.failures else 'ok':6}  {name}")
    for note in run.notes:
        print(f"  note: {note}")
    if run.failures:
        print(f"  failed: {', '.join(run.failures)}")
    print(f"{run.totals.passed} passed, {run.totals.failed} failed", flush=True)
    return 1 if run.failures or run.totals.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=STAGES, help="run only this stage; repeatable")
    chosen = parser.parse_args().only or [name for name in STAGES if name not in APART]
    if "coverage" in chosen:
        for old in ROOT.glob(".coverage.*"):
            old.unlink()
    run = Run()
    for name in chosen:
        STAGES[name](run)
    return report(run)


if __name__ == "__main__":
    sys.exit(main())
