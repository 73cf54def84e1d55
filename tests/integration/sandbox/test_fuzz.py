"""What is worth trying first stays tried, what fuzzing found stays fixed, and what it would find it does find."""

import json
from pathlib import Path

import pytest

from data_plane.sandbox.frames import FrameKind, encode
from data_plane.sandbox.process import Ended, Mode
from tests.fuzz.__main__ import player
from tests.fuzz.streams import Piece, Stream, Streams
from tests.fuzz.worker import FindingError, judge

REGRESSIONS = Path(__file__).parents[2] / "fuzz" / "regressions"
LOAD = encode(FrameKind.LOAD, b"{}")
RUN = encode(FrameKind.RUN, b"{}")
READY = encode(FrameKind.READY, b"{}")
SUCCEEDED = encode(FrameKind.OUTCOME, json.dumps({"outcome": "succeeded"}).encode())


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*.json")), ids=lambda path: path.stem)
async def test_a_stream_that_once_broke_a_worker_breaks_none(tmp_path, path):
    await (await player(tmp_path)).play(Stream.from_json(path.read_text()))


async def test_streams_of_a_seed_are_the_same_and_workers_bear_them(engine, tmp_path):
    streams, again = Streams(engine, 5), Streams(engine, 5)
    playing = await player(tmp_path)
    for _ in range(40):
        stream = streams.draw()
        assert Stream.from_json(stream.to_json()) == stream == again.draw()
        await playing.play(stream)


@pytest.mark.parametrize(
    ("told", "said", "code", "found"),
    [
        (LOAD, b"", 101, "ended with code 101"),
        (LOAD, READY[:-1], 0, "inside a frame"),
        (LOAD, encode(FrameKind.LOAD), 0, "LOAD"),
        (RUN, READY, 0, "ready without a load"),
        (LOAD + RUN, READY + SUCCEEDED + SUCCEEDED, 0, "2 guests ran, 1 were asked for"),
        (LOAD + RUN[:-1], READY + SUCCEEDED, 65, "1 guests ran, 0 were asked for"),
        (LOAD, READY + encode(FrameKind.OUTPUT, b"\x01x"), 0, "nobody asked for a run"),
        (LOAD, READY + encode(FrameKind.HOST_CALL, b"\0\0\0\0"), 0, "nobody asked for a run"),
        (LOAD + RUN, READY + encode(FrameKind.HOST_CALL, b"\xff\0\0\0{}"), 0, "a call that is none"),
    ],
)
def test_what_a_worker_must_not_do_is_found(told, said, code, found):
    stream = Stream(mode=Mode.RUN, pieces=(Piece(data=told),))
    with pytest.raises(FindingError, match=found):
        judge(stream, said, Ended(code=code))
