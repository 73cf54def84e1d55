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
from shared.resources import ResourcesUsed

logger = logging.getLogger(__name__)

NOT_GRANTED: Final = HostReply(
    response=b'{"error":{"message":"no host call is granted to this run","reason":"NOT_GRANTED"}}'
)
INTERNAL: Final = HostReply(
    response=b'{"error":{"message":"the node could not answer; its log says why","reason":"INTERNAL"}}'
)


class CallAnswerer:
    """The host calls of one run, one at a time: a guest waits for its answer."""

    def __init__(self, host_calls: HostCalls | None, link: Link) -> None:
        self._host_calls = host_calls
        self._link = link
        self._answering: asyncio.Task[None] | None = None

    def begin(self, payload: bytes) -> None:
        """Answer a call; returns at once.

        Raises:
            WorkerCrashedError: The payload is no host call, or the last one is not answered yet.
        """
        if self._answering is not None and not self._answering.done():
            raise WorkerCrashedError("worker sent a host call before the last one was answered")
        used, request = messages.parse_host_call(payload)
        if self._host_calls is None:
            self._send(messages.reply_payload(NOT_GRANTED))
        else:
            self._answering = asyncio.create_task(self._answer(self._host_calls, request, used))

    async def aclose(self) -> None:
        """Stop the call that is being answered: its guest is gone."""
        if self._answering is not None and not self._answering.done():
            self._answering.cancel()
            await asyncio.wait([self._answering])

    async def _answer(self, host_calls: HostCalls, request: bytes, used: ResourcesUsed) -> None:
        try:
            payload = messages.reply_payload(await host_calls.answer(request, used))
        except Exception:
            # A fault of the node's in one call must not become a fault of the guest's.
            logger.exception("a host call could not be answered")
            payload = messages.reply_payload(INTERNAL)
        self._send(payload)

    def _send(self, payload: bytes) -> None:
        with suppress(WorkerCrashedError):  # whoever reads the frames learns that it is gone
            self._link.send(encode(FrameKind.HOST_REPLY, payload))
