"""One host call at a time, whatever a worker sends."""

import asyncio
import json

import pytest

from data_plane.sandbox.calls import INTERNAL, NOT_GRANTED, CallAnswerer
from data_plane.sandbox.domain import HostReply
from data_plane.sandbox.frames import FrameDecoder, FrameKind
from shared.errors import WorkerCrashedError
from shared.limits import Limits
from tests.unit.data_plane.sandbox.test_messages import RESOURCES, host_call

CALL = host_call(json.dumps(RESOURCES).encode())


class Sent:
    """The way to a worker, as far as it is written to."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self.replies: list[bytes] = []

    def send(self, data, _descriptors=()) -> None:
        for frame in self._decoder.feed(data):
            assert frame.kind is FrameKind.HOST_REPLY
            self.replies.append(frame.payload[4:])


class Slow:
    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def answer(self, _request, _used):
        await self.gate.wait()
        return HostReply(response=b"late")


async def test_second_call_before_the_answer_to_the_first_is_a_crash():
    calls = CallAnswerer(Slow(), Sent(), Limits())
    calls.begin(CALL)
    with pytest.raises(WorkerCrashedError, match="before the last one was answered"):
        calls.begin(CALL)
    await calls.aclose()


async def test_end_of_the_run_stops_the_call_and_nothing_is_sent():
    slow, sent = Slow(), Sent()
    calls = CallAnswerer(slow, sent, Limits())
    calls.begin(CALL)
    await asyncio.sleep(0)
    await calls.aclose()
    await calls.aclose()
    slow.gate.set()
    await asyncio.sleep(0)
    assert sent.replies == []


async def test_answer_that_is_too_large_is_a_defect_and_answered():
    class Talkative:
        async def answer(self, _request, _used):
            return HostReply(response=b"", log=bytes(1 << 20))

    sent = Sent()
    calls = CallAnswerer(Talkative(), sent, Limits())
    calls.begin(CALL)
    async with asyncio.timeout(5):
        while not sent.replies:
            await asyncio.sleep(0)
    assert sent.replies == [INTERNAL.response]


async def test_denial_where_nothing_is_granted():
    sent = Sent()
    CallAnswerer(None, sent, Limits()).begin(CALL)
    assert sent.replies == [NOT_GRANTED.response]


@pytest.mark.parametrize(
    "limits", [Limits(host_calls=2), Limits(host_call_bytes=3 * 2 + 2 * len(NOT_GRANTED.response) - 1)]
)
async def test_a_worker_that_passes_on_more_than_its_run_may_make_is_a_crash(limits):
    calls = CallAnswerer(None, Sent(), limits)
    calls.begin(CALL)
    calls.begin(CALL)
    with pytest.raises(WorkerCrashedError, match="more than its run may make"):
        calls.begin(CALL)
