"""The duplex part of StreamExecutions: many requests in flight, answers in the order of their ends."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final

from agentfactory.v1 import executions_pb2 as pb

from control_plane.executions.convert import error_to_proto, execution_to_proto, request_from_proto
from control_plane.executions.crowd import Crowd
from control_plane.executions.service import RunRequest  # noqa: TC001 - imports stay in one place
from control_plane.policy.domain import Subject
from shared.errors import AgentFactoryError

MAX_IN_FLIGHT: Final = 1024
"""Executions of one stream whose answer the caller has not taken; beyond it no request is read."""
MAX_RESULTS_PER_MESSAGE: Final = 256
MAX_MESSAGE_BYTES: Final = 2 * 1024 * 1024
"""Of results gathered into one message; well below the bound of 4 MiB."""

METHOD: Final = "StreamExecutions"


async def serve_stream(
    crowd: Crowd,
    subject: Subject,
    requests: AsyncIterator[pb.StreamExecutionsRequest],
    traceparent: str = "",
) -> AsyncGenerator[pb.StreamExecutionsResponse]:
    """Yield answers until every request of the stream has one.

    When the caller goes away its waiting ends; accepted executions go on. `traceparent` is the stream's own,
    for requests that name none.
    """
    stream = _Stream(crowd, subject, traceparent)
    reading = asyncio.create_task(stream.read(requests))
    try:
        while (results := await stream.next_results()) is not None:
            yield pb.StreamExecutionsResponse(results=results)
            stream.taken(len(results))
        await reading  # a failure of the caller's side of the stream ends this side too
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


class _Stream:
    def __init__(self, crowd: Crowd, subject: Subject, traceparent: str) -> None:
        self._crowd = crowd
        self._traceparent = traceparent
        self._subject = subject
        self._room = MAX_IN_FLIGHT
        self._freed = asyncio.Event()
        self._ended: deque[pb.ExecutionResult] = deque()
        self._something = asyncio.Event()
        self._reading = True

    async def read(self, requests: AsyncIterator[pb.StreamExecutionsRequest]) -> None:
        """Start what each message asks for, together; returns when all have ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                async for message in requests:
                    left = list(message.executions)
                    while left:
                        count = await self._room_for(len(left))
                        some, left = left[:count], left[count:]
                        tasks.create_task(self._run(some))
        finally:
            self._reading = False
            self._something.set()

    async def next_results(self) -> list[pb.ExecutionResult] | None:
        """Return what has ended since the last call; None when nothing more can come."""
        while not self._ended:
            if not self._reading:
                return None
            self._something.clear()
            await self._something.wait()
        results: list[pb.ExecutionResult] = []
        size = 0
        while self._ended and len(results) < MAX_RESULTS_PER_MESSAGE:
            size += self._ended[0].ByteSize()
            if results and size > MAX_MESSAGE_BYTES:
                break
            results.append(self._ended.popleft())
        return results

    def taken(self, count: int) -> None:
        """So many results went out: as many requests more may be read."""
        self._room += count
        self._freed.set()

    async def _room_for(self, wanted: int) -> int:
        """Take room for some of them, at least one."""
        while self._room == 0:
            self._freed.clear()
            await self._freed.wait()
        count = min(wanted, self._room)
        self._room -= count
        return count

    async def _run(self, messages: Sequence[pb.ExecutionRequest]) -> None:
        requests: list[RunRequest] = []
        asked: list[str] = []
        for message in messages:
            try:
                requests.append(request_from_proto(message, traceparent=self._traceparent))
                asked.append(message.request_id)
            except AgentFactoryError as error:
                self._end(pb.ExecutionResult(request_id=message.request_id, error=error_to_proto(error)))
        results = self._crowd.execute(self._subject, requests, method=METHOD)
        async with aclosing(results):
            async for position, result in results:
                request_id = asked[position]
                if isinstance(result, AgentFactoryError):
                    self._end(pb.ExecutionResult(request_id=request_id, error=error_to_proto(result)))
                else:
                    execution = execution_to_proto(result)
                    self._end(pb.ExecutionResult(request_id=request_id, execution=execution))

    def _end(self, result: pb.ExecutionResult) -> None:
        self._ended.append(result)
        self._something.set()
