"""NOTIFY and LISTEN: replicas wake each other. Carries hints, never truth: every subscriber also polls.

Subscribers of the own replica are told in memory. Postgres is asked to tell others only while others listen.
"""

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
PATIENCE_SECONDS: Final = 0.25
"""How long a hint waits for company when it is one of `CAN_WAIT` and nothing leaves before."""
HEALTH_CHECK_SECONDS: Final = 10.0
HEALTH_TIMEOUT_SECONDS: Final = 5.0
FIRST_RECONNECT_SECONDS: Final = 0.1
MAX_RECONNECT_SECONDS: Final = 5.0

OTHERS_CHECK_SECONDS: Final = 1.0
"""How long it is believed that nobody else listens. Whoever begins to listen polls by itself."""

POLL: Final = ""
"""A payload that says only: look yourself."""

Subscriber = Callable[[Sequence[str]], None]
"""Called in the event loop with a payload's parts; none means that something may have been missed: poll."""

_log = get_logger(__name__)


class Channel(StrEnum):
    """What replicas tell each other."""

    EXECUTIONS = "af_executions"
    """Ids of executions that changed."""
    ENDS = "af_ends"
    """Ids of executions that ended where their callers wait: seldom of interest elsewhere."""
    STARTS = "af_starts"
    """Ids of executions whose guest has started: of no interest to those who wait for an end."""
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
    POLICY = "af_policy"
    """Another policy was put in force."""


TOLD_ALWAYS: Final = frozenset({Channel.AGENTS, Channel.NODES, Channel.KEYSETS})
"""Rare, and believed for long by who hears nothing: who began to listen a moment ago must not miss one."""

CAN_WAIT: Final = frozenset({Channel.AUDIT, Channel.ENDS})
"""One or two of each execution, and nearly always of use to nobody: each send costs every replica."""


class Subscriptions:
    """Who in this process wants to hear of which channel."""

    def __init__(self, *, replica: str) -> None:
        self.replica = replica
        """A name that no other process has: by it a process knows its own notifications."""
        self._subscribers: dict[str, set[Subscriber]] = {channel: set() for channel in Channel}

    @contextlib.contextmanager
    def subscribed(self, channel: Channel, subscriber: Subscriber) -> Iterator[None]:
        """Call `subscriber` for the length of the block."""
        self._subscribers[channel].add(subscriber)
        try:
            yield
        finally:
            self._subscribers[channel].discard(subscriber)

    def deliver(self, channel: str, parts: Sequence[str]) -> None:
        """Tell the subscribers of a channel."""
        for subscriber in tuple(self._subscribers.get(channel, ())):
            subscriber(parts)

    def everybody_polls(self) -> None:
        """Something may have been missed."""
        for channel in Channel:
            self.deliver(channel, ())


class PostgresNotifier:
    """Sends notifications after commits, gathered. Losing one is harmless."""

    def __init__(self, connection: HeldConnection, subscriptions: Subscriptions) -> None:
        self._connection = connection
        self._subscriptions = subscriptions
        self._waiting: dict[str, dict[str, None]] = {}
        self._something = asyncio.Event()
        self._hurry = asyncio.Event()
        self._nobody_until = 0.0

    def notify(self, channel: str, payloads: Sequence[str] = ()) -> None:
        """See `Notifier.notify`."""
        asyncio.get_running_loop().call_soon(self._subscriptions.deliver, channel, tuple(payloads))
        self.notify_others(channel, payloads)

    def notify_others(self, channel: str, payloads: Sequence[str] = ()) -> None:
        """See `Notifier.notify_others`."""
        if self.knows_of_nobody and channel not in TOLD_ALWAYS:
            return
        self._waiting.setdefault(channel, {}).update(dict.fromkeys(payloads or (POLL,)))
        self._something.set()
        if channel not in CAN_WAIT:
            self._hurry.set()

    @property
    def knows_of_nobody(self) -> bool:
        """Whether no other replica listened a moment ago."""
        return asyncio.get_running_loop().time() < self._nobody_until

    async def run(self) -> NoReturn:
        """Send until cancelled."""
        try:
            while True:
                await self._something.wait()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        await self._hurry.wait()
                self._something.clear()
                self._hurry.clear()
                waiting, self._waiting = self._waiting, {}
                try:
                    await self._send(waiting)
                except DatabaseUnavailableError as error:
                    _log.warning("notification lost, others will poll", error=str(error))
                await asyncio.sleep(SPACING_SECONDS)
        finally:
            await self._connection.close()

    async def _send(self, waiting: dict[str, dict[str, None]]) -> None:
        replica = self._subscriptions.replica
        channels = list(waiting)
        payloads = [f"{replica}{_FROM}{_joined(list(parts))}" for parts in waiting.values()]
        began = asyncio.get_running_loop().time()
        async with self._connection.use() as connection:
            sent = await connection.fetch(_NOTIFY, channels, payloads, f"{_LISTENER}{replica}")
        if not sent:
            self._nobody_until = began + OTHERS_CHECK_SECONDS


_LISTENER: Final = "agentfactory-listen-"
"""Application name of the connection on which a replica listens, its own name behind."""

_FROM: Final = "|"

_NOTIFY: Final = f"""
SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) AS n (channel, payload)
WHERE EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND starts_with(application_name, '{_LISTENER}')
        AND application_name <> $3)
"""  # noqa: S608 - constants of our own; values are parameters


def _joined(parts: list[str]) -> str:
    payload = ",".join(parts)
    return POLL if POLL in parts or len(payload.encode()) > MAX_PAYLOAD_BYTES else payload


class Notifications:
    """Listens on a connection of its own, outside the pool, and connects again by itself."""

    def __init__(self, engine: AsyncEngine, subscriptions: Subscriptions) -> None:
        self._engine = engine
        self._subscriptions = subscriptions

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
                self._subscriptions.everybody_polls()
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
            server_settings={"application_name": f"{_LISTENER}{self._subscriptions.replica}"},
        )
        return connection

    def _received(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        sender, mark, said = str(payload).rpartition(_FROM)
        if mark and sender == self._subscriptions.replica:
            return  # its own subscribers know already
        self._subscriptions.deliver(channel, [part for part in said.split(",") if part])


async def _until_broken(connection: DriverConnection) -> None:
    broken = asyncio.Event()
    connection.add_termination_listener(lambda _: broken.set())
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(broken.wait(), HEALTH_CHECK_SECONDS)
            raise DatabaseUnavailableError("the connection that listens was closed")
        # A peer that is gone without a word shows only when it is asked.
        await asyncio.wait_for(connection.execute("SELECT 1"), HEALTH_TIMEOUT_SECONDS)
