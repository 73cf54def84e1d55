"""Bad days of Postgres: it goes away and comes back, connections are cut, notifications go on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.database.engine import PoolBounds, create_engine
from control_plane.database.notifications import (
    PATIENCE_SECONDS,
    Channel,
    Notifications,
    PostgresNotifier,
    Subscriptions,
)
from control_plane.database.unit_of_work import HeldConnection, PostgresDatabase
from control_plane.executions.domain import AcceptOutcome
from shared.errors import DatabaseUnavailableError
from tests.builders.executions import TENANT
from tests.fixtures.execution_worlds import Heard, postgres_world
from tests.fixtures.postgres import SERVICE, postgres_18_binaries, running_server

BOUND_SECONDS = 30.0

CUT = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = :service")


@pytest.fixture(scope="module")
def own_server():
    """A server that a test may stop."""
    with running_server(postgres_18_binaries()) as server:
        yield server


@pytest.fixture
def own_database(own_server):
    return own_server.new_database()


@asynccontextmanager
async def task_of(work):
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def cut_connections(server, database):
    """End every connection of the service, as an administrator can."""
    engine = create_engine(server.url(database, user="postgres"), application="test-admin")
    async with engine.connect() as connection:
        await connection.execute(CUT, {"service": SERVICE})
    await engine.dispose()


async def test_postgres_stopped_means_unavailable_and_service_resumes_by_itself(own_server, own_database):
    async with postgres_world(own_server, own_database) as world, asyncio.timeout(BOUND_SECONDS):
        (before,) = await world.store.accept([item := world.build.execution()], [None])

        await asyncio.to_thread(own_server.stop)
        for _ in range(3):
            with pytest.raises(DatabaseUnavailableError):
                await world.store.accept([world.build.execution()], [None])
            with pytest.raises(DatabaseUnavailableError):
                await world.store.get(TENANT, item.run.execution_id)
        await asyncio.to_thread(own_server.start)

        assert await eventually(world.store.accept, [world.build.execution()], [None])
        found = await world.store.get(TENANT, item.run.execution_id)
    assert (before.outcome, found.execution_id) == (AcceptOutcome.NEW, item.run.execution_id)


async def eventually(call, *arguments):
    """Repeat as a client would that is told UNAVAILABLE; bounded."""
    for _ in range(20):
        try:
            return await call(*arguments)
        except DatabaseUnavailableError:
            continue
    raise AssertionError("service did not resume")


async def test_connections_that_were_cut_cost_each_user_one_refusal_at_most(own_server, own_database):
    async with postgres_world(own_server, own_database) as world, asyncio.timeout(BOUND_SECONDS):
        item = world.build.execution()
        await world.store.accept([item], [None])
        await world.store.get(TENANT, item.run.execution_id)
        await cut_connections(own_server, own_database)

        refused = 0
        for _ in range(4):
            try:
                await world.store.accept([world.build.execution()], [None])
                await world.store.get(TENANT, item.run.execution_id)
            except DatabaseUnavailableError:
                refused += 1

    assert refused <= 2


async def test_a_statement_that_takes_too_long_is_an_outage_and_not_a_hang(own_server, own_database):
    bounds = PoolBounds(connections=1, statement=timedelta(milliseconds=100))
    engine = create_engine(own_server.url(own_database, user=SERVICE), application="test", bounds=bounds)
    database = PostgresDatabase(engine, notifier=Heard())
    try:
        with pytest.raises(DatabaseUnavailableError, match="statement timeout"):
            async with database.reading() as connection:
                await connection.execute(text("SELECT pg_sleep(5)"))
        async with database.reading() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    finally:
        await engine.dispose()


async def test_a_pool_without_a_free_connection_is_unavailable_after_its_wait(own_server, own_database):
    bounds = PoolBounds(connections=1, wait=timedelta(milliseconds=50))
    engine = create_engine(own_server.url(own_database, user=SERVICE), application="test", bounds=bounds)
    database = PostgresDatabase(engine, notifier=Heard())
    try:
        async with database.reading() as connection:
            await connection.execute(text("SELECT 1"))
            with pytest.raises(DatabaseUnavailableError):
                async with database.reading():
                    pass
    finally:
        await engine.dispose()


class TwoReplicas:
    """What one replica says and another hears, over a real server."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.here, self.there = Subscriptions(replica="here"), Subscriptions(replica="there")
        self.notifier = PostgresNotifier(HeldConnection(engine), self.here)
        self.listening = Notifications(engine, self.here), Notifications(engine, self.there)
        self.heard: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
        self.heard_here: list[tuple[str, ...]] = []

    @asynccontextmanager
    async def running(self, channel: Channel, *, other: bool = True) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.enter_context(
                self.there.subscribed(channel, lambda parts: self.heard.put_nowait(tuple(parts)))
            )
            stack.enter_context(
                self.here.subscribed(channel, lambda parts: self.heard_here.append(tuple(parts)))
            )
            await stack.enter_async_context(task_of(self.listening[0].run()))
            if other:
                await stack.enter_async_context(task_of(self.listening[1].run()))
            await stack.enter_async_context(task_of(self.notifier.run()))
            await stack.enter_async_context(asyncio.timeout(BOUND_SECONDS))
            if other:
                assert await self.heard.get() == ()
            while not self.heard_here:
                await asyncio.sleep(0.01)
            self.heard_here.clear()
            yield


@pytest.fixture
async def replicas(own_server, own_database):
    engine = create_engine(own_server.url(own_database, user=SERVICE), application="test")
    yield TwoReplicas(engine)
    await engine.dispose()


async def test_listeners_hear_each_other_and_poll_after_every_reconnect(replicas, own_server, own_database):
    async with replicas.running(Channel.EXECUTIONS):
        replicas.notifier.notify(Channel.EXECUTIONS, ["exe_1", "exe_2"])
        assert await replicas.heard.get() == ("exe_1", "exe_2")

        await cut_connections(own_server, own_database)
        assert await replicas.heard.get() == ()
        while True:  # the first send after the cut may be lost, as promised
            replicas.notifier.notify(Channel.EXECUTIONS, ["exe_3"])
            try:
                async with asyncio.timeout(1):
                    if await replicas.heard.get() == ("exe_3",):
                        break
            except TimeoutError:
                continue


async def test_the_own_replica_hears_at_once_and_once(replicas):
    async with replicas.running(Channel.EXECUTIONS):
        replicas.notifier.notify(Channel.EXECUTIONS, ["exe_1"])
        replicas.notifier.notify_others(Channel.EXECUTIONS, ["exe_2"])
        heard = set()
        while heard != {"exe_1", "exe_2"}:
            heard.update(await replicas.heard.get())
        replicas.notifier.notify_others(Channel.EXECUTIONS, ["exe_3"])
        assert await replicas.heard.get() == ("exe_3",)
        assert replicas.heard_here == [("exe_1",)]


async def test_hints_that_can_wait_leave_with_others_or_a_moment_later(replicas):
    async with replicas.running(Channel.ENDS):
        loop = asyncio.get_running_loop()
        began = loop.time()
        replicas.notifier.notify_others(Channel.ENDS, ["exe_1"])
        await asyncio.sleep(0.02)
        replicas.notifier.notify_others(Channel.ENDS, ["exe_2"])
        assert await replicas.heard.get() == ("exe_1", "exe_2")
        assert loop.time() - began >= PATIENCE_SECONDS

        replicas.notifier.notify_others(Channel.ENDS, ["exe_3"])
        began = loop.time()
        replicas.notifier.notify_others(Channel.QUEUE)
        assert await replicas.heard.get() == ("exe_3",)
        assert loop.time() - began < PATIENCE_SECONDS


async def test_a_lone_replica_tells_itself_without_a_statement_until_another_listens(replicas):
    async with replicas.running(Channel.QUEUE, other=False):
        replicas.notifier.notify(Channel.QUEUE)
        while not replicas.notifier.knows_of_nobody:
            await asyncio.sleep(0.01)
        assert replicas.heard_here == [()]
        async with task_of(replicas.listening[1].run()):
            assert await replicas.heard.get() == ()
            while replicas.heard.empty():  # after a second at the latest it is known that somebody listens
                replicas.notifier.notify(Channel.QUEUE)
                await asyncio.sleep(0.05)


async def test_a_payload_that_is_too_long_says_only_poll(replicas):
    async with replicas.running(Channel.QUEUE):
        replicas.notifier.notify(Channel.QUEUE, [f"exe_{number:040}" for number in range(500)])
        assert await replicas.heard.get() == ()


async def test_an_error_of_a_statement_shows_none_of_its_parameters(own_server, own_database):
    engine = create_engine(own_server.url(own_database, user=SERVICE), application="test")
    try:
        async with engine.connect() as connection:
            with pytest.raises(DBAPIError) as failed:
                await connection.execute(text("SELECT 1 / length(:body)"), {"body": ""})
            assert "parameters hidden" in str(failed.value)
    finally:
        await engine.dispose()


async def test_callers_who_give_up_cost_no_connection(own_server, own_database):
    """In the middle of a statement, as deadlines of a busy day do it."""
    engine = create_engine(own_server.url(own_database), application="test-given-up")
    database = PostgresDatabase(engine, notifier=Heard())

    async def backend() -> int:
        async with database.reading() as connection:
            return int(await connection.scalar(text("SELECT pg_backend_pid()")))

    async def reads() -> None:
        async with database.reading() as connection:
            await connection.execute(text("SELECT pg_sleep(0.1)"))

    async def writes() -> None:
        async with database.transaction() as tx:
            await tx.connection.execute(text("SELECT pg_sleep(0.1)"))

    try:
        before = await backend()
        for work in (reads, writes):
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await work()
        assert await backend() == before
    finally:
        await engine.dispose()


async def test_a_statement_that_does_not_end_is_given_up_with_its_connection(own_server, own_database):
    engine = create_engine(own_server.url(own_database), application="test-hangs")
    database = PostgresDatabase(engine, notifier=Heard())
    try:
        started = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), database.reading() as connection:
                await connection.execute(text(f"SELECT pg_sleep({BOUND_SECONDS})"))
        assert asyncio.get_running_loop().time() - started < BOUND_SECONDS / 2
        async with database.reading() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1
    finally:
        await engine.dispose()
