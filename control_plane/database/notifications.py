"""NOTIFY and LISTEN: replicas wake each other. Carries hints, never truth: every subscriber also polls."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Any, Final, NoReturn

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.database.errors import database_errors
from control_plane.database.unit_of_work import DriverConnection, HeldConnection
from shared.errors import DatabaseUnavailableError
from shared.logs import get_logger

MAX_PAYLOAD_BYTES: Final = 7900
"""Postgres takes less than 8000."""
SPACING_SECONDS: Final = 0.01
"""Between two sends: what gathers meanwhile leaves together."""
HEALTH_CHECK_SECONDS: Final = 10.0
HEALTH_TIMEOUT_SECONDS: Final = 5.0
FIRST_RECONNECT_SECONDS: Final = 0.1
MAX_RECONNECT_SECONDS: Final = 5.0

POLL: Final = ""
"""A payload that says only: look yourself."""

Subscriber = Callable[[Sequence[str]], None]
"""Called in the event loop with a payload's parts; none means that something may have been missed: poll."""

_log = get_logger(__name__)


class Channel(StrEnum):
    """What replicas tell each other."""

    EXECUTIONS = "af_executions"
    """Ids of executions that changed."""
    QUEUE = "af_queue"
    """Something became claimable."""
    CANCELS = "af_cancels"
    """Ids of executions whose live attempt shall stop."""
    AGENTS = "af_agents"
    """An agent or a template changed."""
    AUDIT = "af_audit"
    """Audit entries were recorded."""
    NODES = "af_nodes"
    """Ids of nodes whose state changed or that opened a newer session."""
    KEYSETS = "af_keysets"
    """There is a newer keyset."""


class PostgresNotifier:
    """Sends notifications after commits, gathered. Losing one is harmless."""

    def __init__(self, connection: HeldConnection) -> None:
        self._connection = connection
        self._waiting: dict[str, dict[str, None]] = {}
        self._something = asyncio.Event()

    def notify(self, channel: str, payloads: Sequence[str] = ()) -> None:
        """See `Notifier.notify`."""
        self._waiting.setdefault(channel, {}).update(dict.fromkeys(payloads or (POLL,)))
        self._something.set()

    async def run(self) -> NoReturn:
        """Send until cancelled."""
        try:
            while True:
                await self._something.wait()
                self._something.clear()
                waiting, self._waiting = self._waiting, {}
                try:
                    await self._send(waiting)
                except DatabaseUnavailableError as error:
                    _log.warning("notification lost, others will poll", error=str(error))
                await asyncio.sleep(SPACING_SECONDS)
        finally:
            await self._connection.close()

    async def _send(self, waiting: dict[str, dict[str, None]]) -> None:
        channels = list(waiting)
        payloads = [_joined(list(parts)) for parts in waiting.values()]
        async with self._connection.use() as connection:
            await connection.execute(_NOTIFY, channels, payloads)


_NOTIFY: Final = (
    "SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) AS n (channel, payload)"
)


def _joined(parts: list[str]) -> str:
    payload = ",".join(parts)
    return POLL if POLL in parts or len(payload.encode()) > MAX_PAYLOAD_BYTES else payload


class Notifications:
    """Listens on a connection of its own, outside the pool, and connects again by itself."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._subscribers: dict[str, set[Subscriber]] = {channel: set() for channel in Channel}

    @contextlib.contextmanager
    def subscribed(self, channel: Channel, subscriber: Subscriber) -> Iterator[None]:
        """Call `subscriber` for the length of the block."""
        self._subscribers[channel].add(subscriber)
        try:
            yield
        finally:
            self._subscribers[channel].discard(subscriber)

    async def run(self) -> NoReturn:
        """Listen until cancelled. After every connect all subscribers are told to poll."""
        delay = FIRST_RECONNECT_SECONDS
        while True:
            try:
                await self._listen()
                delay = FIRST_RECONNECT_SECONDS
            except DatabaseUnavailableError as error:
                _log.warning("not listening to postgres, subscribers poll", error=str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, MAX_RECONNECT_SECONDS)

    async def _listen(self) -> None:
        with database_errors():
            connection = await self._connect()
            try:
                for channel in Channel:
                    await connection.add_listener(channel, self._received)
                self._everybody_polls()
                await _until_broken(connection)
            finally:
                connection.terminate()

    async def _connect(self) -> DriverConnection:
        _, options = self._engine.dialect.create_connect_args(self._engine.url)
        options.pop("prepared_statement_cache_size", None)
        connect: Any = asyncpg.connect  # not typed
        connection: DriverConnection = await connect(
            **options,
            timeout=HEALTH_TIMEOUT_SECONDS,
            server_settings={"application_name": "agentfactory-listen"},
        )
        return connection

    def _received(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        parts = [part for part in str(payload).split(",") if part]
        for subscriber in tuple(self._subscribers.get(channel, ())):
            subscriber(parts)

    def _everybody_polls(self) -> None:
        for subscribers in self._subscribers.values():
            for subscriber in tuple(subscribers):
                subscriber(())


async def _until_broken(connection: DriverConnection) -> None:
    broken = asyncio.Event()
    connection.add_termination_listener(lambda _: broken.set())
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(broken.wait(), HEALTH_CHECK_SECONDS)
            raise DatabaseUnavailableError("the connection that listens was closed")
        # A peer that is gone without a word shows only when it is asked.
        await asyncio.wait_for(connection.execute("SELECT 1"), HEALTH_TIMEOUT_SECONDS)
