"""Memories that begin as a mapped image: what a guest finds in them is what the standard says, whatever ran before it.

The oracle is a model in Python. A module with a start function of its own has no image under the default profile, so the
same module with one that does nothing is the way without.
"""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from data_plane.sandbox.domain import RunResult
from data_plane.sandbox.pool import WorkerPool
from shared.manifest import Profile
from shared.outcomes import LimitName, Outcome
from tests.integration.sandbox.conftest import Run, inside, saying, wat

PAGE = 65_536
NAME = "/memfd:agentfactory-image"
PATIENT = {"wall_ms": 3_600_000, "cpu_ms": 3_600_000}
"""What a run found in its memory is judged, not how long a machine took that was halted meanwhile: one that is ends as killed
by its time, with the right output."""
LARGE = bytes(range(1, 252)) * 2100
"""Enough for an image by itself, and no byte of it is zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A memory and the active segments that are written to it, in this order."""

    pages: int
    segments: tuple[tuple[int, bytes], ...]
    declared: str = ""
    body: str = ""
    """Runs before the memory is written out."""
    offsets: dict[int, str] = field(default_factory=dict)
    """Expressions in place of plain offsets, by the number of the segment."""

    def module(self, *more: str) -> bytes:
        """Write the memory out, fill it with ones, and end."""
        data = "\n".join(
            f'(data {self.offsets.get(number, f"(i32.const {at})")} "{_escaped(content)}")'
            for number, (at, content) in enumerate(self.segments)
        )
        size = self.pages * PAGE
        return wat(f"""(module
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          {self.declared} {" ".join(more)}
          (memory (export "memory") {self.pages})
          {data}
          (func (export "_start") (local $at i32) (local $last i32)
            {self.body}
            (local.set $at (i32.load8_u (i32.const {size - 1})))
            (memory.fill (i32.const {size - 32}) (i32.const 0) (i32.const 32))
            (loop $more
              ;; the list stands in the last bytes, which are not written out
              (i32.store (i32.const {size - 16}) (local.get $last))
              (i32.store (i32.const {size - 12}) (i32.const {PAGE - 32}))
              (drop (call $write (i32.const 1) (i32.const {size - 16}) (i32.const 1) (i32.const {size - 8})))
              (local.set $last (i32.add (local.get $last) (i32.const {PAGE - 32})))
              (br_if $more (i32.lt_u (local.get $last) (i32.const {_written(size)}))))
            (memory.fill (i32.const 0) (i32.const 255) (i32.const {size}))))""")

    def expected(self) -> bytes:
        """What a fresh memory is, as far as it is written out."""
        memory = bytearray(self.pages * PAGE)
        for at, content in self.segments:
            memory[at : at + len(content)] = content
        written = _written(len(memory))
        memory[-32:] = bytes(32)
        return bytes(memory[:written])


def _trap(result: RunResult) -> str | None:
    return result.trap and result.trap.name


def _written(size: int) -> int:
    return (size - 32) // (PAGE - 32) * (PAGE - 32)


def _escaped(content: bytes) -> str:
    return "".join(f"\\{byte:02x}" for byte in content)


def _random_layout(seed: int) -> Layout:
    source = random.Random(seed)
    pages = source.randint(9, 40)
    segments = [(source.randrange(pages * PAGE - len(LARGE)), LARGE)]
    for _ in range(source.randint(0, 30)):
        content = source.randbytes(source.choice((0, 1, 7, 4096, 5000, 70_000)))
        segments.insert(
            source.randrange(len(segments) + 1), (source.randrange(pages * PAGE - len(content)), content)
        )
    return Layout(pages=pages, segments=tuple(segments))


LAYOUTS = {
    "at the start": Layout(pages=10, segments=((0, LARGE),)),
    "at the end": Layout(pages=10, segments=((10 * PAGE - 64 - len(LARGE), LARGE),)),
    "the last byte": Layout(pages=10, segments=((0, LARGE), (10 * PAGE - 1, b"x"))),
    "within pages": Layout(pages=12, segments=((PAGE + 4097, LARGE),)),
    "a hole between": Layout(pages=64, segments=((5, LARGE), (50 * PAGE + 3, b"end"))),
    "one over the other": Layout(pages=12, segments=((10, LARGE), (500, b"over"), (11, b"\0\0"))),
    "empty ones": Layout(pages=10, segments=((0, b""), (100, LARGE), (10 * PAGE, b""))),
    "too far apart": Layout(pages=600, segments=((0, LARGE), (599 * PAGE, b"far"))),
    "too little": Layout(pages=10, segments=((1000, b"little"),)),
    "offsets that are computed": Layout(
        pages=12,
        segments=((70_000, LARGE),),
        offsets={0: "(offset (i32.add (i32.const 69000) (i32.const 1000)))"},
    ),
} | {f"random {seed}": _random_layout(seed) for seed in range(24)}


@pytest.mark.parametrize("name", LAYOUTS)
async def test_a_memory_begins_as_its_segments_say_in_every_run_of_a_worker(run: Run, name: str) -> None:
    layout = LAYOUTS[name]
    limits = {"output_bytes": 64 << 20, "memory_bytes": 128 << 20, **PATIENT}
    expected = layout.expected()
    for module in (layout.module(), layout.module("(func $nothing)", "(start $nothing)")):
        for _ in range(2):
            result = await run(module=module, **limits)
            assert (result.outcome, result.stdout == expected) == (Outcome.SUCCEEDED, True), result.trap
            assert result.resources.peak_memory_bytes == layout.pages * PAGE


@pytest.mark.parametrize("name", ["at the start", "within pages", "a hole between", "too little", "random 3"])
@pytest.mark.parametrize("profile", [Profile.DEFAULT, Profile.DETERMINISTIC])
async def test_pages_that_a_module_says_it_writes_hold_what_they_did(
    run: Run, name: str, profile: Profile
) -> None:
    """Whether it does, or writes others: it says so to be faster."""
    layout = LAYOUTS[name]
    small = layout.pages * PAGE // 4096
    limits = {"output_bytes": 64 << 20, "memory_bytes": 128 << 20, "profile": profile, "fuel": 1 << 40}
    for pages in (range(small), range(0, small, 3), (small - 1,)):
        for _ in range(2):
            result = await run(module=saying(layout.module(), pages), **limits, **PATIENT)
            assert (result.outcome, result.stdout == layout.expected()) == (Outcome.SUCCEEDED, True)
            assert result.resources.peak_memory_bytes == layout.pages * PAGE


async def test_pages_that_are_named_are_the_runs_own(run: Run) -> None:
    layout = Layout(pages=10, segments=((0, LARGE),))
    module = saying(layout.module(), range(160))
    result = await run(module=module, memory_bytes=10 * PAGE - 1, output_bytes=1 << 20)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.MEMORY_BYTES)


@pytest.mark.parametrize("profile", [Profile.DETERMINISTIC, Profile.PORTABLE])
async def test_fuel_is_the_same_in_every_run_and_segments_cost_none(run: Run, profile: Profile) -> None:
    used = set()
    for segments in (((0, LARGE),), ((0, LARGE[:10]),)):
        layout = Layout(pages=10, segments=segments)
        for _ in range(2):
            result = await run(module=layout.module(), profile=profile, fuel=10_000_000, output_bytes=1 << 20)
            assert result.stdout == layout.expected(), result
            used.add(result.resources.fuel)
    assert len(used) == 1


async def test_a_start_function_runs_once_for_each_run_under_a_repeatable_profile(run: Run) -> None:
    """There the host calls it, so that the module has an image all the same."""
    layout = Layout(pages=10, segments=((0, LARGE),))
    module = layout.module(
        "(func $s (i32.store8 (i32.const 7) (i32.add (i32.load8_u (i32.const 7)) (i32.const 1))))"
    )
    started = layout.module(
        "(func $s (i32.store8 (i32.const 7) (i32.add (i32.load8_u (i32.const 7)) (i32.const 1))))",
        "(start $s)",
    )
    for profile in Profile:
        options = {"profile": profile, "fuel": 10_000_000, "output_bytes": 1 << 20}
        for _ in range(2):
            assert (await run(module=module, **options)).stdout[7] == LARGE[7]
            assert (await run(module=started, **options)).stdout[7] == LARGE[7] + 1


async def test_passive_segments_are_the_guests_to_write(run: Run) -> None:
    passive = '(data $p "passive")'
    body = """(memory.init $p (i32.const 20) (i32.const 0) (i32.const 7))
              (memory.init $p (i32.const 40) (i32.const 1) (i32.const 2)) (data.drop $p)"""
    layout = Layout(pages=10, segments=((0, LARGE), (PAGE, b"x")), declared=passive, body=body)
    expected = bytearray(layout.expected())
    expected[20:27], expected[40:42] = b"passive", b"as"
    for _ in range(2):
        result = await run(module=layout.module(), output_bytes=1 << 20)
        assert result.stdout == bytes(expected), result
    again = Layout(pages=10, segments=((0, LARGE),), declared=passive, body=body + body)
    assert _trap(await run(module=again.module(), output_bytes=1 << 20)) == "HeapAccessOutOfBounds"


@pytest.mark.parametrize("start", [[], ["(func $nothing)", "(start $nothing)"]], ids=["image", "none"])
async def test_a_segment_out_of_bounds_traps_in_each_run(run: Run, start: list[str]) -> None:
    layout = Layout(pages=10, segments=((0, LARGE), (10 * PAGE - 1, b"xx")))
    for _ in range(2):
        result = await run(module=layout.module(*start), output_bytes=1 << 20)
        assert _trap(result) == "HeapAccessOutOfBounds", result
        assert result.stdout == b""


async def test_a_memory_with_an_image_grows_to_its_limit_and_no_page_further(run: Run) -> None:
    first, last = 10 * PAGE, 12 * PAGE - 1
    grows = f"""(if (i32.ne (memory.grow (i32.const 2)) (i32.const 10)) (then unreachable))
               (if (i32.or (i32.load8_u (i32.const {first})) (i32.load8_u (i32.const {last}))) (then unreachable))
               (memory.fill (i32.const {first}) (i32.const 7) (i32.const {2 * PAGE}))"""
    layout = Layout(pages=10, segments=((0, LARGE),), body=grows)
    for _ in range(2):
        result = await run(module=layout.module(), memory_bytes=12 * PAGE, output_bytes=1 << 20)
        assert (result.stdout, result.resources.peak_memory_bytes) == (layout.expected(), 12 * PAGE), result
    result = await run(module=layout.module(), memory_bytes=12 * PAGE - 1, output_bytes=1 << 20)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.MEMORY_BYTES)
    result = await run(module=layout.module(), memory_bytes=10 * PAGE - 1, output_bytes=1 << 20)
    assert (result.outcome, result.limit) == (Outcome.KILLED, LimitName.MEMORY_BYTES)
    beyond = Layout(
        pages=10, segments=((0, LARGE),), body=f"(i32.store8 (i32.const {10 * PAGE}) (i32.const 1))"
    )
    assert _trap(await run(module=beyond.module(), output_bytes=1 << 20)) == "HeapAccessOutOfBounds"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into another user's process")
async def test_nobody_can_change_an_image(run: Run, pool: WorkerPool) -> None:
    layout = Layout(pages=10, segments=((0, LARGE),))
    await run(module=layout.module(), output_bytes=1 << 20)
    (worker,) = next(iter(pool._idle.values()))
    (image,) = images(inside(worker.process))
    with image.open("r+b", buffering=0) as file:
        assert os.pread(file.fileno(), 10 * PAGE, 0).startswith(LARGE)
        with pytest.raises(PermissionError):
            os.pwrite(file.fileno(), b"x", 0)
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(file.fileno(), size)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into another user's process")
@pytest.mark.parametrize("name", ["too far apart", "too little"])
async def test_a_module_that_gains_nothing_has_no_image(run: Run, pool: WorkerPool, name: str) -> None:
    await run(module=LAYOUTS[name].module(), output_bytes=64 << 20, memory_bytes=128 << 20, **PATIENT)
    (worker,) = next(iter(pool._idle.values()))
    assert images(inside(worker.process)) == []


def images(pid: int) -> list[Path]:
    """The images that a worker holds."""
    descriptors = Path(f"/proc/{pid}/fd").iterdir()
    return [path for path in descriptors if path.readlink().as_posix().startswith(NAME)]
