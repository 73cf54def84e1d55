"""Keeps a session open: connects, reconnects with jittered backoff, ends when the identity has ended.

Judges no message; runs nothing.
"""

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Final, Protocol

from data_plane.session.stream import HeartbeatCounter, Session, SessionParts, Stream
from shared.clock import Random
from shared.errors import (
    AgentFactoryError,
    ClockSkewError,
    NodeEvictedError,
    NodeQuarantinedError,
    UnsupportedVersionError,
)
from shared.logs import get_logger

logger = get_logger(__name__)

FIRST_BACKOFF: Final = timedelta(milliseconds=100)
MAX_BACKOFF: Final = timedelta(seconds=5)
STEADY_AFTER: Final = timedelta(seconds=10)
"""A session that lasted this long starts the backoff anew."""

FATAL: Final = (NodeEvictedError, NodeQuarantinedError, UnsupportedVersionError)
"""What no reconnecting can mend."""


class ClosableStream(Stream, Protocol):
    """A stream that can be let go."""

    async def close(self) -> None: ...


class Connector(Protocol):
    """Opens streams, each to the next control plane in turn."""

    target: str

    async def open_session(self) -> ClosableStream:
        """Raises `AgentFactoryError` when there is none to be had."""


class Backoff:
    """Grows from 100 ms to 5 s; full jitter, so that the nodes of a dead replica do not come back as one."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._ceiling = FIRST_BACKOFF

    def reset(self) -> None:
        """The last try went well."""
        self._ceiling = FIRST_BACKOFF

    def next_pause(self) -> timedelta:
        """Return how long to wait before the next try."""
        ceiling, self._ceiling = self._ceiling, min(self._ceiling * 2, MAX_BACKOFF)
        part = int.from_bytes(self._random.token_bytes(2), "big") / 0xFFFF
        return FIRST_BACKOFF / 2 + (ceiling - FIRST_BACKOFF / 2) * part

    def jump(self) -> None:
        """Wait long next time: trying soon cannot help."""
        self._ceiling = MAX_BACKOFF


class SessionService:
    """One session at a time, for the life of the node."""

    def __init__(self, *, connector: Connector, parts: SessionParts, random: Random) -> None:
        self._connector = connector
        self._parts = parts
        self._counter = HeartbeatCounter()
        self._backoff = Backoff(random)
        self._renew = asyncio.Event()
        self._session: Session | None = None
        self._opened_at: float | None = None
        self.is_connected = False

    async def run(self) -> None:
        """Hold a session until cancelled.

        Raises:
            NodeEvictedError, NodeQuarantinedError, UnsupportedVersionError: The node cannot go on.
        """
        while True:
            try:
                await self._hold_one()
                logger.info("session ended by the control plane", target=self._connector.target)
            except FATAL:
                raise
            except AgentFactoryError as error:
                if isinstance(error, ClockSkewError):
                    self._backoff.jump()
                logger.warning(
                    "session lost", target=self._connector.target, reason=error.reason, error=str(error)
                )
            except Exception:
                # One message that nobody foresaw, or a disk that fails: it costs a session, never the node.
                logger.exception("session lost by an error of this node", target=self._connector.target)
            await asyncio.sleep(self._backoff.next_pause().total_seconds())

    def reconnect(self) -> None:
        """End the session that is open and begin another: the certificate has changed. What runs goes on."""
        self._renew.set()

    def announce(self) -> None:
        """Send a heartbeat now: something in it has changed that should not wait for the next one."""
        if self._session is not None and self.is_connected:
            self._session.announce()

    async def _hold_one(self) -> None:
        self._opened_at = None
        stream = await self._connector.open_session()
        try:
            session = Session(self._parts, self._counter, stream)
            self._renew.clear()
            self._session = session
            await self._until_renewal(session.run(self._opened))
        finally:
            self._reset_if_steady()
            self._session = None
            self.is_connected = False
            self._parts.metrics.connected.set(0)
            await stream.close()

    def _reset_if_steady(self) -> None:
        # Not at the welcome: one that says welcome and dies of it would be asked ten times a second.
        if self._opened_at is None:
            return
        if self._parts.clock.monotonic() - self._opened_at >= STEADY_AFTER.total_seconds():
            self._backoff.reset()

    async def _until_renewal(self, work: Awaitable[None]) -> None:
        session = asyncio.ensure_future(work)
        renewal = asyncio.ensure_future(self._renew.wait())
        try:
            await asyncio.wait({session, renewal}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            renewal.cancel()
            session.cancel()
            await asyncio.wait({session, renewal})
        if not session.cancelled():
            session.result()

    def _opened(self) -> None:
        self.is_connected = True
        self._opened_at = self._parts.clock.monotonic()
        self._parts.metrics.sessions.inc()
        self._parts.metrics.connected.set(1)
