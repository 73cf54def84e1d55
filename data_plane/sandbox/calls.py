"""Answers a worker's host calls while its frames are read on. Knows no method."""

import asyncio
import logging
from contextlib import suppress
from typing import Final

from data_plane.sandbox import messages
from data_plane.sandbox.domain import HostReply
from data_plane.sandbox.frames import FrameKind, encode
from data_plane.sandbox.link import Link
from data_plane.sandbox.ports import HostCalls
from shared.errors import WorkerCrashedError
from shared.limits import Limits
from shared.resources import ResourcesUsed

logger = logging.getLogger(__name__)

NOT_GRANTED: Final = HostReply(
    response=b'{"error":{"message":"no host call is granted to this run","reason":"NOT_GRANTED"}}'
)
INTERNAL: Final = HostReply(
    response=b'{"error":{"message":"the node could not answer; its log says why","reason":"INTERNAL"}}'
)


class CallAnswerer:
    """The host calls of one run, one at a time: a guest waits for its answer. Counts them itself."""

    def __init__(self, host_calls: HostCalls | None, link: Link, limits: Limits) -> None:
        self._host_calls = host_calls
        self._link = link
        self._limits = limits
        self.calls = 0
        self.bytes = 0
        """Of requests and responses."""
        self._answering: asyncio.Task[None] | None = None

    def begin(self, payload: bytes) -> None:
        """Answer a call; returns at once.

        Raises:
            WorkerCrashedError: The payload is no host call, the last one is not answered yet, or the worker,
                which counts too, has to have ended the run before.
        """
        if self._answering is not None and not self._answering.done():
            raise WorkerCrashedError("worker sent a host call before the last one was answered")
        used, request = messages.parse_host_call(payload)
        self.calls += 1
        self.bytes += len(request)
        if self.calls > self._limits.host_calls or self.bytes > self._limits.host_call_bytes:
            raise WorkerCrashedError(
                f"worker passed on {self.calls} host calls of {self.bytes} bytes, more than its run may make"
            )
        if self._host_calls is None:
            self._send(NOT_GRANTED, messages.reply_payload(NOT_GRANTED))
        else:
            self._answering = asyncio.create_task(self._answer(self._host_calls, request, used))

    async def aclose(self) -> None:
        """Stop the call that is being answered: its guest is gone."""
        if self._answering is not None and not self._answering.done():
            self._answering.cancel()
            await asyncio.wait([self._answering])

    async def _answer(self, host_calls: HostCalls, request: bytes, used: ResourcesUsed) -> None:
        try:
            reply = await host_calls.answer(request, used)
            payload = messages.reply_payload(reply)
        except Exception:
            # A fault of the node's in one call must not become a fault of the guest's.
            logger.exception("a host call could not be answered")
            reply, payload = INTERNAL, messages.reply_payload(INTERNAL)
        self._send(reply, payload)

    def _send(self, reply: HostReply, payload: bytes) -> None:
        self.bytes += len(reply.response)
        with suppress(WorkerCrashedError):  # whoever reads the frames learns that it is gone
            self._link.send(encode(FrameKind.HOST_REPLY, payload))
