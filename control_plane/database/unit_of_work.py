"""Connections and transactions of one process. Holds no query of a store, who decides what happens on them.

What a call opens sees and changes the rows of its tenant alone (row security, ADR 22): the wall stands on who
called, not on what a statement says. The connections of group commits and of dispatch, lent as the driver's
own, are outside of it; so is whatever no call asked for.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final, Protocol

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.database.connection import PatientConnection
from control_plane.database.errors import database_errors
from control_plane.database.ports import Notifier, Transaction
from shared.ids import TenantId
from shared.rpc.identity import confined_to

TENANT_ROLE: Final = "af_tenant"
"""Sees the rows of the tenant in the setting `af.tenant`; without one, none."""

DISPATCH_ROLE: Final = "af_dispatch"
"""Sees the rows of every tenant."""

# Both end with the transaction. A statement of its own: what follows is planned for the role.
_CONFINE: Final = text(
    f"SELECT set_config('role', '{TENANT_ROLE}', true), set_config('af.tenant', :tenant_id, true)"
)

DISPOSE_SECONDS: Final = 5.0
"""Bound on closing a pool whose server may not answer any more."""


class DriverRecord(Protocol):
    """A row as the driver gives it."""

    def __getitem__(self, column: str, /) -> Any:
        """Return the value of a column."""


class DriverConnection(Protocol):
    """The driver's own connection, as far as we use it; asyncpg's types are not complete."""

    async def fetch(self, query: str, *arguments: Any) -> list[DriverRecord]:
        """Run a statement and return all rows."""

    async def fetchrow(self, query: str, *arguments: Any) -> DriverRecord | None:
        """Run a statement and return its first row."""

    async def execute(self, query: str, *arguments: Any) -> str:
        """Run a statement and return its command tag."""

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """Open a transaction for a block."""

    async def add_listener(self, channel: str, callback: Callable[..., None]) -> None:
        """Listen on a channel."""

    def add_termination_listener(self, callback: Callable[..., None]) -> None:
        """Call when the connection has ended."""

    def is_closed(self) -> bool:
        """Whether it has ended."""

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open."""

    def terminate(self) -> None:
        """End it without a word."""


class PostgresTransaction:
    """One open transaction, and what to tell others once it has committed."""

    __slots__ = ("_notes", "connection")

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self._notes: dict[str, list[str]] = {}

    def notify_after_commit(self, channel: str, payload: str = "") -> None:
        """See `Transaction.notify_after_commit`."""
        self._notes.setdefault(channel, []).append(payload)

    def notes(self) -> Iterable[tuple[str, list[str]]]:
        """Return what is to be told, by channel."""
        return self._notes.items()


def connection_of(tx: Transaction) -> AsyncConnection:
    """Return the connection below a transaction that `PostgresDatabase` opened. For stores only."""
    if not isinstance(tx, PostgresTransaction):
        raise TypeError(f"{type(tx).__name__} is not a transaction of this database")
    return tx.connection


class PostgresDatabase:
    """Where transactions and connections come from."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        notifier: Notifier,
        confined_to: Callable[[], TenantId | None] = confined_to,
    ) -> None:
        self._engine = engine
        self._notifier = notifier
        self._confined_to = confined_to

    @property
    def notifier(self) -> Notifier:
        """Where stores leave what others shall hear after a commit."""
        return self._notifier

    def of_every_tenant(self) -> "PostgresDatabase":
        """Return the same for what is the installation's own, within a call too: no wall of tenants."""
        return PostgresDatabase(self._engine, notifier=self._notifier, confined_to=lambda: None)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresTransaction]:
        """See `Database.transaction`."""
        with database_errors():
            async with PatientConnection(self._engine) as connection, connection.begin():
                await self._confine(connection)
                tx = PostgresTransaction(connection)
                yield tx
        for channel, payloads in tx.notes():
            self._notifier.notify(channel, payloads)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection for reads.

        Raises:
            DatabaseUnavailableError: Postgres is away.
        """
        with database_errors():
            async with PatientConnection(self._engine) as connection:
                await self._confine(connection)
                yield connection

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[DriverConnection]:
        """Lend the driver's own connection from the pool, outside any transaction and the wall of tenants.

        Raises:
            DatabaseUnavailableError: Postgres is away; the fate of what was under way is unknown.
        """
        with database_errors():
            async with self._engine.connect() as connection:
                raw = await _driver_connection(connection)
                try:
                    yield raw
                except asyncpg.exceptions.InternalClientError:
                    await connection.invalidate()  # it looks open, and nothing can be asked any more
                    raise
                finally:
                    await self._give_back(connection, raw)

    def held(self) -> "HeldConnection":
        """Return a connection that its user keeps. Close it before the database."""
        return HeldConnection(self._engine)

    async def close(self) -> None:
        """Close every connection."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._engine.dispose(), DISPOSE_SECONDS)

    async def _confine(self, connection: AsyncConnection) -> None:
        tenant_id = self._confined_to()
        if tenant_id is not None:
            await connection.execute(_CONFINE, {"tenant_id": tenant_id})

    async def _give_back(self, connection: AsyncConnection, raw: DriverConnection) -> None:
        if raw.is_closed():
            await connection.invalidate()
            # Its siblings went with the same server: none of them may be lent again.
            await self._engine.dispose(close=False)
        elif raw.is_in_transaction():
            await connection.invalidate()


class HeldConnection:
    """One connection kept for the statements of the hot path: a checkout costs twice a statement.

    One user at a time; connects when first used and again after a failure.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self._raw: DriverConnection | None = None
        self._busy = asyncio.Lock()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[DriverConnection]:
        """Lend the connection, outside any transaction.

        Raises:
            DatabaseUnavailableError: Postgres is away; the fate of what was under way is unknown.
        """
        async with self._busy:
            with database_errors():
                raw = await self._connected()
                clean = False
                try:
                    yield raw
                    clean = True
                except asyncpg.exceptions.PostgresError:
                    clean = not raw.is_closed() and not raw.is_in_transaction()
                    raise
                finally:
                    if not clean:
                        await self._drop()

    async def close(self) -> None:
        """Give the connection up."""
        async with self._busy:
            await self._drop()

    async def _connected(self) -> DriverConnection:
        if self._raw is not None and self._raw.is_closed():
            await self._drop()
        if self._raw is None:
            self._connection = await self._engine.connect()
            self._raw = await _driver_connection(self._connection)
        return self._raw

    async def _drop(self) -> None:
        connection, raw = self._connection, self._raw
        self._connection = self._raw = None
        if connection is None:
            return
        if raw is None or raw.is_closed():
            # Its siblings went with the same server: none of them may be lent again.
            await self._engine.dispose(close=False)
        with suppress(Exception):  # it is broken or not wanted any more: nothing can be learnt from it
            await connection.invalidate()
            await connection.close()


async def _driver_connection(connection: AsyncConnection) -> DriverConnection:
    raw: DriverConnection | None = (await connection.get_raw_connection()).driver_connection
    assert raw is not None
    return raw
