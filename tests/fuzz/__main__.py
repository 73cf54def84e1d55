"""``python -m tests.fuzz [--seconds N] [--only TARGET]...``: guests, peers and workers that say anything at all.

* ``wasi``: any sequence of WASI calls, guided by coverage (data_plane/engine/wasi/fuzz, libFuzzer).
* ``protocol``: any stream of frames and descriptors into the real worker binary, and between two of them any answers of a
  worker into the node's decoder and parsers. Each stream has a process of its own, so coverage guides nothing here.

Both run at the same time. What failed is written to build/fuzz/ (replay a stream with ``--replay FILE``; give a call
sequence to the binary that is named there), and the exit code is 1.
"""

import argparse
import asyncio
import hashlib
import math
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from agentfactory_engine import worker_path

from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.engine import read_engines
from shared.manifest import Profile
from tests.fuzz import decoder, wasi
from tests.fuzz.streams import Stream, Streams
from tests.fuzz.worker import FindingError, Player

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / "build" / "fuzz"
GUESTS = ROOT / "tests" / "guests"
PROBE, CALLER = GUESTS / "probe.wasm", GUESTS / "caller.wasm"
TARGETS = ("wasi", "protocol")
ANSWERS_PER_STREAM = 4


def keep(target: str, content: bytes, why: str) -> None:
    """Write a failing input where the next run and people find it."""
    FOUND.mkdir(parents=True, exist_ok=True)
    path = FOUND / f"{target}-{hashlib.sha256(content).hexdigest()[:16]}"
    path.write_bytes(content)
    print(f"FOUND {target}: {why}\n      input: {path.relative_to(ROOT)}", flush=True)


async def player(folder: Path) -> Player:
    """Return a player with its guests compiled: one that does what it is told, and one that makes host calls."""
    artifact, caller = folder / "artifact", folder / "caller"
    for guest, compiled in ((PROBE, artifact), (CALLER, caller)):
        with guest.open("rb") as module, compiled.open("wb+") as target:
            await WorkerCompiler(worker_path=worker_path()).compile(
                module_fd=module.fileno(), artifact_fd=target.fileno()
            )
    return Player(artifact=artifact, caller=caller, module=PROBE, folder=folder)


async def fuzz_protocol(seconds: float, seed: int) -> bool:
    """Play streams and decode answers until the time is over or one shows something."""
    until = time.monotonic() + seconds
    engine = (await read_engines(worker_path()))[Profile.DEFAULT]
    streams, source = Streams(engine, seed), random.Random(seed)
    played = answered = 0
    with tempfile.TemporaryDirectory() as folder:
        playing = await player(Path(folder))
        while time.monotonic() < until:
            stream = streams.draw()
            played += 1
            try:
                await playing.play(stream)
            except FindingError as error:
                keep("worker", stream.to_json().encode(), f"{error} (seed {seed})")
                return False
            for _ in range(ANSWERS_PER_STREAM):
                data = decoder.draw(source)
                answered += 1
                try:
                    decoder.judge(data, source)
                except FindingError as error:
                    keep("decoder", data, f"{error} (seed {seed})")
                    return False
    print(f"protocol: {played} streams, {answered} answers, seed {seed}", flush=True)
    return True


async def fuzz(targets: list[str], seconds: float, seed: int) -> bool:
    """Run the targets side by side; say whether all held."""
    jobs = []
    if "wasi" in targets:
        wasi.build()
        jobs.append(asyncio.to_thread(wasi.run, seconds, FOUND))
    if "protocol" in targets:
        jobs.append(fuzz_protocol(seconds, seed))
    return all(await asyncio.gather(*jobs))


async def replay(path: Path) -> bool:
    """Play one kept stream."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            await (await player(Path(folder))).play(Stream.from_json(path.read_text()))
        except FindingError as error:
            print(f"FOUND worker: {error}")
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each target; 0 for ever")
    parser.add_argument("--only", action="append", choices=TARGETS, help="run only this target; repeatable")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    parser.add_argument("--replay", type=Path, help="play one kept stream to a worker")
    given = parser.parse_args()
    if given.replay:
        return 0 if asyncio.run(replay(given.replay)) else 1
    held = asyncio.run(fuzz(given.only or list(TARGETS), given.seconds or math.inf, given.seed))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
