"""The duplex part of StreamExecutions: many requests in flight, answers in the order of their ends."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from agentfactory.v1 import executions_pb2 as pb

from control_plane.executions.convert import error_to_proto, execution_to_proto, request_from_proto
from control_plane.executions.service import ExecutionService
from control_plane.policy.domain import Subject
from shared.errors import AgentFactoryError, InternalError
from shared.logs import get_logger

MAX_IN_FLIGHT: Final = 1024
"""Executions of one stream whose answer the caller has not taken; beyond it no request is read."""
MAX_RESULTS_PER_MESSAGE: Final = 256
MAX_MESSAGE_BYTES: Final = 2 * 1024 * 1024
"""Of results gathered into one message; well below the bound of 4 MiB."""

METHOD: Final = "StreamExecutions"

_log = get_logger(__name__)


async def serve_stream(
    service: ExecutionService, subject: Subject, requests: AsyncIterator[pb.StreamExecutionsRequest]
) -> AsyncGenerator[pb.StreamExecutionsResponse]:
    """Yield answers until every request of the stream has one.

    When the caller goes away its waiting ends; accepted executions go on.
    """
    stream = _Stream(service, subject)
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
    def __init__(self, service: ExecutionService, subject: Subject) -> None:
        self._service = service
        self._subject = subject
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._ended: deque[pb.ExecutionResult] = deque()
        self._something = asyncio.Event()
        self._reading = True

    async def read(self, requests: AsyncIterator[pb.StreamExecutionsRequest]) -> None:
        """Start an execution for every request; returns when all have ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                async for message in requests:
                    for request in message.executions:
                        await self._slots.acquire()
                        tasks.create_task(self._run(request))
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
        for _ in range(count):
            self._slots.release()

    async def _run(self, request: pb.ExecutionRequest) -> None:
        self._ended.append(await self._answer(request))
        self._something.set()

    async def _answer(self, request: pb.ExecutionRequest) -> pb.ExecutionResult:
        try:
            execution = await self._service.execute(self._subject, request_from_proto(request), method=METHOD)
        except AgentFactoryError as error:
            return pb.ExecutionResult(request_id=request.request_id, error=error_to_proto(error))
        except Exception:  # noqa: BLE001 - one broken request must not end the others of its stream
            _log.exception("an execution on a stream failed")
            masked = error_to_proto(InternalError("internal error"))
            return pb.ExecutionResult(request_id=request.request_id, error=masked)
        return pb.ExecutionResult(request_id=request.request_id, execution=execution_to_proto(execution))
