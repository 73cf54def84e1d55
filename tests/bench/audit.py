"""How fast people find an audit entry: ``python -m tests.bench.audit``. Writes build/bench/audit.json.

A million entries of two tenants over five weeks, in the partitions that a new database has; every filter is
asked for again and again with other values, pages of 50, on one connection.
"""

import asyncio
import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg

from control_plane.audit.domain import AuditFilter, EntryOrder
from control_plane.audit.store import PostgresAuditStore
from control_plane.database.engine import create_engine
from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.paging import encode_token
from shared.ids import TenantId, least_id
from tests.bench.log import NobodyListens
from tests.bench.report import Figure, measured, publish, quantile
from tests.fixtures.postgres import OWNER, SERVICE, PostgresServer, postgres_18_binaries, running_server

ENTRIES: Final = 1_000_000
QUERIES: Final = 60
SECONDS: Final = 900
BAR_MS: Final = 50.0
TENANT: Final = TenantId("default")
BEGIN: Final = datetime.now(UTC).replace(microsecond=0) - timedelta(days=7)
SPAN: Final = timedelta(days=35)
ACTIONS: Final = (
    *("execution.submitted",) * 480,
    *("execution.succeeded",) * 450,
    *("execution.failed",) * 30,
    *("execution.denied",) * 20,
    *("agent.created", "agent.updated") * 8,
    *("policy.activated", "keyset.published", "node.evicted", "access.bound"),
)
REASONS: Final = (*("ok",) * 980, *("POLICY_DENIED",) * 15, *("PERMISSION_DENIED",) * 4, "UNKNOWN_KEY")
COLUMNS: Final = (
    "audit_entry_id", "tenant_id", "actor", "action", "subject", "result", "details", "recorded_at",
)  # fmt: skip


def actor(draw: random.Random) -> str:
    """A few do nearly everything, many do little."""
    return f"spiffe://bench/caller/c{int(300 * draw.random() ** 4)}"


def rows(draw: random.Random) -> Iterator[tuple[object, ...]]:
    step = SPAN / ENTRIES
    for number in range(ENTRIES):
        at = BEGIN + number * step
        stem = least_id("aud", at)[:17]
        action = draw.choice(ACTIONS)
        result = draw.choice(REASONS)
        yield (
            f"{stem}-7{number % 4096:03x}-8000-{number:012x}",
            TENANT if number % 10 else "other",
            actor(draw),
            action,
            f"exe_{number // 3:036d}",
            result,
            '{"agent": "redact", "order_id": "ord_0190f5ac-0000-7000-8000-000000000000"}',
            at,
        )


def moment(draw: random.Random) -> datetime:
    return BEGIN + SPAN * draw.random() * 0.95


Asked = tuple[AuditFilter, EntryOrder, str]


def newest(wanted: AuditFilter) -> Asked:
    return wanted, EntryOrder.NEWEST_FIRST, ""


def an_hour(draw: random.Random, **more: str) -> AuditFilter:
    at = moment(draw)
    return AuditFilter(recorded_from=at, recorded_before=at + timedelta(hours=1), **more)


QUESTIONS: Final[dict[str, Callable[[random.Random], Asked]]] = {
    "no filter": lambda _: newest(AuditFilter()),
    "oldest first": lambda _: (AuditFilter(), EntryOrder.OLDEST_FIRST, ""),
    "a page deep inside": lambda draw: (
        AuditFilter(), EntryOrder.NEWEST_FIRST, encode_token(_id_at(moment(draw))),
    ),
    "actor": lambda draw: newest(AuditFilter(actor=actor(draw))),
    "a rare actor": lambda draw: newest(AuditFilter(actor=f"spiffe://bench/caller/c{draw.randrange(250, 300)}")),
    "nobody's": lambda _: newest(AuditFilter(actor="spiffe://bench/caller/nobody")),
    "action": lambda draw: newest(AuditFilter(action=draw.choice(ACTIONS))),
    "a rare action": lambda draw: newest(AuditFilter(action=draw.choice(ACTIONS[-4:]))),
    "execution.*": lambda _: newest(AuditFilter(action="execution.*")),
    "policy.*": lambda _: newest(AuditFilter(action="policy.*")),
    "subject": lambda draw: newest(AuditFilter(subject=f"exe_{draw.randrange(ENTRIES // 3):036d}")),
    "refused": lambda _: newest(AuditFilter(result="refused")),
    "a rare reason": lambda _: newest(AuditFilter(result="UNKNOWN_KEY")),
    "an hour": lambda draw: newest(an_hour(draw)),
    "an hour, oldest first": lambda draw: (an_hour(draw), EntryOrder.OLDEST_FIRST, ""),
    "an hour, refused": lambda draw: newest(an_hour(draw, result="refused")),
    "actor and action": lambda draw: newest(AuditFilter(actor=actor(draw), action=draw.choice(ACTIONS))),
    "actor, action and an hour": lambda draw: newest(
        an_hour(draw, actor=actor(draw), action=draw.choice(ACTIONS))
    ),
    "actor and refused": lambda draw: newest(AuditFilter(actor=actor(draw), result="refused")),
    "policy.* and refused": lambda _: newest(AuditFilter(action="policy.*", result="refused")),
}  # fmt: skip


def _id_at(at: datetime) -> str:
    return f"{least_id('aud', at)[:17]}-7000-8000-000000000000"


async def fill(server: PostgresServer, name: str) -> None:
    connection = await asyncpg.connect(host=str(server.folder), port=5432, user=OWNER, database=name)
    try:
        await connection.execute("INSERT INTO tenants (tenant_id) VALUES ('default'), ('other')")
        # One statement with a million rows would be announced as one of a million: the log is another bench.
        await connection.execute("ALTER TABLE audit_entries DISABLE TRIGGER announce")
        await connection.copy_records_to_table(
            "audit_entries", records=rows(random.Random(7)), columns=COLUMNS, timeout=SECONDS
        )
        # As it is some minutes after such a load: the first reader of a row is not measured.
        await connection.execute("VACUUM (ANALYZE) audit_entries", timeout=SECONDS)
    finally:
        await connection.close(timeout=5)


async def bench(server: PostgresServer, name: str) -> list[Figure]:
    begun = time.perf_counter()
    await fill(server, name)
    sys.stderr.write(f"{ENTRIES:,} entries in {time.perf_counter() - begun:.0f} s\n")
    engine = create_engine(server.url(name, user=SERVICE), application="bench")
    database = PostgresDatabase(engine, notifier=NobodyListens())
    store = PostgresAuditStore(database)
    figures, everything = [], []
    try:
        for what, question in QUESTIONS.items():
            taken = await _ask(store, question)
            everything += taken
            figures.append(
                measured(
                    f"{what}, p95",
                    [quantile(taken, 0.95)],
                    "ms",
                    beside=("p50", [quantile(taken, 0.5)]),
                )
            )
    finally:
        await database.close()
    worst = quantile(everything, 0.95)
    return [
        measured(
            f"a page of any filter, {ENTRIES:,} entries, p95",
            [worst],
            "ms",
            bar="≤ 50 ms",
            bar_ok=worst <= BAR_MS,
        ),
        *figures,
    ]


async def _ask(store: PostgresAuditStore, question: Callable[[random.Random], Asked]) -> list[float]:
    draw, taken = random.Random(11), []
    for _ in range(QUERIES):
        wanted, order, token = question(draw)
        begun = time.perf_counter()
        await store.list(TENANT, wanted, order=order, page_size=50, page_token=token)
        taken.append((time.perf_counter() - begun) * 1000)
    return taken


def main() -> int:
    binaries = postgres_18_binaries()
    if binaries is None:
        raise SystemExit("PostgreSQL 18 is not installed")
    with running_server(binaries, durable=True) as server:
        name = server.new_database()
        return publish("audit", asyncio.run(asyncio.wait_for(bench(server, name), SECONDS)))


if __name__ == "__main__":
    sys.exit(main())
