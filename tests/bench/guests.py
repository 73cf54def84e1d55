"""What an agent in JavaScript or Python costs: `python -m tests.bench.guests [javascript] [python]`.

Times in the worker are what its receipt would say: instantiation and run. Beside them stand the same runtime that is started for
each run instead of once (wasmtime-py, compiled before: instantiation and start, without the run), and the same function in a fresh
process of CPython.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from cli.guests.build import Built, Workshop, package_of, start_files
from cli.guests.new import make_project
from cli.guests.project import Language, Project, find_project
from cli.guests.runtimes import find_runtime
from cli.guests.sandbox import Bench
from cli.guests.start import Start
from shared.manifest import Manifest
from tests.bench.engine import compile_module, worker_report
from tests.bench.report import Figure, measured, publish, quantile
from tests.fixtures.runtimes import runtime_folder

RUNS: Final = 300
COMMANDS: Final = 10
STARTS: Final = {Language.PYTHON: 5, Language.JAVASCRIPT: 20}
"""A start of Python takes a second."""
BODY: Final = b'{"text": "to be or not to be"}'
PLAIN: Final = (
    "import json, sys, re, dataclasses, datetime, typing; from collections import Counter; "
    "w = json.load(sys.stdin)['text'].lower().split(); "
    "print(json.dumps({'words': len(w), 'most_common': [x for x, _ in Counter(w).most_common(3)]}))"
)
BARS: Final = {Language.PYTHON: (1.5, 5.0), Language.JAVASCRIPT: (0.6, None)}


def build_figures(language: Language, folder: Path, runtimes: Path) -> tuple[list[Figure], Built, Manifest]:
    project = find_project(make_project(f"{language}-agent", language, folder))
    times, built = [], None
    for attempt in range(3):
        # The first one compiles the runtime as well; an edit is what authors wait for.
        main = project.folder / project.main_file
        comment = "# " if language is Language.PYTHON else "// "
        main.write_text(f"{main.read_text()}{comment}{attempt}\n")
        began = time.monotonic()
        built = Workshop(cache=folder / "cache", runtimes=runtimes).build(project)
        times.append(time.monotonic() - began)
    began = time.monotonic()
    Workshop(cache=folder / "cache", runtimes=runtimes).build(project)
    unchanged = time.monotonic() - began
    assert built is not None
    later = sorted(times[1:])
    whole = unchanged_commands(project, folder, runtimes)
    figures = [
        measured(f"{language}: build after an edit", later, "s", bar="≤ 20 s", bar_ok=later[-1] <= 20),
        measured(f"{language}: build, unchanged, the whole command", whole, "s", at_most=0.5),
        measured(f"{language}: build, unchanged, without our start", [unchanged], "s"),
        measured(f"{language}: very first build", times[:1], "s"),
        measured(f"{language}: module", [len(built.module) / 2**20], "MiB"),
    ]
    return figures, built, package_of(project, built, None).manifest


def unchanged_commands(project: Project, folder: Path, runtimes: Path) -> list[float]:
    """Return the times of the command of somebody whose Python keeps its byte code, as they do."""
    environment = os.environ | {
        "AF_CLI_CACHE_DIR": str(folder / "cache"),
        "AF_CLI_RUNTIMES": str(runtimes),
        "PYTHONPYCACHEPREFIX": str(folder / "byte-code"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "cli.main", "build", str(project.folder)]
    times = []
    for _ in range(COMMANDS + 1):
        began = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        times.append(time.monotonic() - began)
    return times[1:]


def starts(language: Language, folder: Path, runtimes: Path) -> list[float]:
    """Return ms of starts that are not saved."""
    project = find_project(folder / f"{language}-agent")
    runtime = find_runtime(language, runtimes)
    files = start_files(project, runtime, project.sources())
    times = []
    for _ in range(STARTS[language]):
        start = Start(language, runtime.module, files, folder / "cache" / "starts")
        began = time.monotonic()
        start.run()
        times.append((time.monotonic() - began) * 1e3)
    return times


async def run_figures(
    language: Language, folder: Path, built: Built, manifest: Manifest, beside: tuple[str, list[float]]
) -> list[Figure]:
    bench = Bench(cache=folder / "cache")
    times, processor, memory = [], [], 0
    async with bench.opened(manifest, built.module) as run:
        for _ in range(RUNS):
            ran = await run(BODY)
            assert json.loads(ran.result.stdout)["words"] == 6, ran
            times.append(ran.result.resources.wall.total_seconds() * 1e3)
            processor.append(ran.result.resources.cpu.total_seconds() * 1e3)
            memory = max(memory, ran.result.resources.peak_memory_bytes)
    times = times[RUNS // 10 :]
    p50, p99 = quantile(times, 0.5), quantile(times, 0.99)
    bar50, bar99 = BARS[language]
    mib = memory / 2**20
    return [
        measured(f"{language}: in the worker, p50", [p50], "ms", beside=beside, at_most=bar50),
        measured(
            f"{language}: in the worker, p99",
            [p99],
            "ms",
            at_most=bar99,
        ),
        measured(f"{language}: processor time of a run", processor[RUNS // 10 :], "ms"),
        measured(f"{language}: memory of a run", [mib], "MiB", bar="≤ 40 MiB", bar_ok=mib <= 40),
    ]


async def engine_figures(language: Language, folder: Path, built: Built) -> list[Figure]:
    """The same run without a node: host calls are answered at once."""
    body = folder / "body.json"
    body.write_bytes(BODY)
    artifact = await compile_module(built.module, folder, language)
    reports = [worker_report(artifact, body, runs=RUNS) for _ in range(3)]

    def each(name: str, scale: float = 1.0) -> list[float]:
        return [report[name] * scale for report in reports]

    return [
        measured(f"{language}: engine only, processor time", each("engine_run_cpu_us_median", 1e-3), "ms"),
        measured(f"{language}: engine only, page faults", each("engine_run_page_faults"), "pages"),
        measured(f"{language}: blocking client, p50", each("round_trip_us_p50", 1e-3), "ms"),
        measured(f"{language}: blocking client, p99", each("round_trip_us_p99", 1e-3), "ms"),
    ]


def fresh_python() -> list[float]:
    times = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run([sys.executable, "-I", "-S", "-c", PLAIN], input=BODY, check=True, capture_output=True)
        times.append((time.monotonic() - began) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("languages", nargs="*", default=["javascript"])
    languages = [Language(name) for name in parser.parse_args().languages]
    runtimes = runtime_folder(*languages)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="agentfactory-bench-") as name:
        for language in languages:
            folder = Path(name) / language
            folder.mkdir()
            builds, built, manifest = build_figures(language, folder, runtimes)
            figures += builds
            beside = ("started for each run", starts(language, folder, runtimes))
            figures += asyncio.run(run_figures(language, folder, built, manifest, beside))
            figures += asyncio.run(engine_figures(language, folder, built))
        figures.append(measured("a fresh process of CPython, the same function", fresh_python(), "ms"))
    sys.exit(publish("guests", figures))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()
