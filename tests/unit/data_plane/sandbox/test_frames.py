import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.sandbox.frames import (
    CHUNK_BYTES,
    MAX_FRAME_BYTES,
    Frame,
    FrameDecoder,
    FrameKind,
    encode,
    encode_stdin,
)
from shared.errors import WorkerCrashedError

FRAMES = st.lists(st.builds(Frame, st.sampled_from(FrameKind), st.binary(max_size=200)), max_size=10)


@given(frames=FRAMES, data=st.data())
def test_frames_survive_any_cutting_of_the_stream(frames, data):
    stream = b"".join(encode(frame.kind, frame.payload) for frame in frames)
    decoder = FrameDecoder()
    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += decoder.feed(stream[:size])
        stream = stream[size:]
    assert found == frames
    assert decoder.is_empty


@given(frames=FRAMES.filter(bool), data=st.data())
def test_a_cut_stream_yields_no_part_of_a_frame_and_is_seen_as_cut(frames, data):
    stream = b"".join(encode(frame.kind, frame.payload) for frame in frames)
    missing = data.draw(st.integers(1, len(encode(*frames[-1])) - 1))
    decoder = FrameDecoder()
    assert decoder.feed(stream[:-missing]) == frames[:-1]
    assert not decoder.is_empty


@given(junk=st.binary(min_size=5, max_size=64))
def test_junk_is_refused_or_waits_but_never_breaks(junk):
    decoder = FrameDecoder()
    try:
        frames = decoder.feed(junk)
    except WorkerCrashedError:
        return
    assert sum(len(frame.payload) + 5 for frame in frames) <= len(junk)


def test_the_largest_frame_fits_and_one_byte_more_does_not():
    payload = bytes(MAX_FRAME_BYTES - 1)
    assert FrameDecoder().feed(encode(FrameKind.OUTPUT, payload)) == [Frame(FrameKind.OUTPUT, payload)]
    with pytest.raises(ValueError, match="does not fit"):
        encode(FrameKind.OUTPUT, payload + b"x")


@pytest.mark.parametrize("size", [0, MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_empty_and_oversized_frames_are_refused_before_their_body_comes(size):
    with pytest.raises(WorkerCrashedError, match=f"frame of {size} bytes"):
        FrameDecoder().feed(struct.pack("<I", size))


@pytest.mark.parametrize("kind", [0, 10, 255])
def test_unknown_frames_are_refused(kind):
    with pytest.raises(WorkerCrashedError, match=f"unknown type {kind}"):
        FrameDecoder().feed(struct.pack("<IB", 1, kind))


@given(size=st.integers(0, 3 * CHUNK_BYTES))
def test_a_body_is_chunked_without_an_empty_frame(size):
    frames = FrameDecoder().feed(b"".join(encode_stdin(bytes(size))))
    assert sum(len(frame.payload) for frame in frames) == size
    assert all(0 < len(frame.payload) <= CHUNK_BYTES for frame in frames)
