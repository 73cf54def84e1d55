"""What the transparency log costs: ``python -m tests.bench.log``. Writes build/bench/log.json.

How fast one replica integrates with Postgres on the same machine, durable; what announcing takes from the
statement that records; and how long verifying one inclusion takes.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from sqlalchemy import text

from control_plane.audit.domain import NewAuditEntry
from control_plane.audit.store import PostgresAuditStore
from control_plane.database.engine import create_engine
from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.log.service import LogService
from control_plane.log.store import PostgresLogStore
from shared.checkpoints import log_origin, parse_checkpoint
from shared.clock import SystemClock, SystemRandom
from shared.ids import AUDIT_ENTRY, TenantId, new_id
from shared.merkle import leaf_hash, verify_inclusion
from shared.signatures import FileSigner, PrivateKey, PublicKey
from tests.bench.report import Figure, measured, median, publish, quantile
from tests.fixtures.postgres import OWNER, SERVICE, PostgresServer, postgres_18_binaries, running_server

ENTRIES: Final = 40_000
GROUP: Final = 50
REPEATS: Final = 3
STATEMENTS: Final = 40
SECONDS: Final = 300
TENANT: Final = TenantId("default")

INSERT: Final = """
EXPLAIN (ANALYZE, FORMAT JSON)
INSERT INTO audit_entries (audit_entry_id, tenant_id, actor, action, subject, details)
SELECT id, 'default', 'ann', 'bench.happened', id, '{"a": 1, "b": "cccccccccccccccccccccccc"}'::jsonb
FROM unnest($1::text[]) AS id
"""


class Keys(FileSigner):
    """A log key in memory."""

    async def public(self) -> PublicKey:
        return self.key.public


class Unobserved:
    def log_integrated(self, leaves: int, seconds: float) -> None: ...

    def log_size(self, tree_size: int) -> None: ...


class NobodyListens:
    def notify(self, channel: str, payloads: object = ()) -> None: ...

    def notify_others(self, channel: str, payloads: object = ()) -> None: ...


@asynccontextmanager
async def world(server: PostgresServer, name: str) -> AsyncIterator[tuple[PostgresDatabase, LogService]]:
    engine = create_engine(server.url(name, user=SERVICE), application="bench")
    database = PostgresDatabase(engine, notifier=NobodyListens())
    log = LogService(
        database=database,
        store=PostgresLogStore(),
        origin=log_origin("bench", 1),
        keys=Keys(key=PrivateKey.generate_ed25519()),
        observer=Unobserved(),
        random=SystemRandom(),
    )
    try:
        yield database, log
    finally:
        await database.close()


async def integrating(server: PostgresServer, name: str) -> list[Figure]:
    """Integrate what groups of 50 recorded, and prove one entry after the other."""
    rates, verified = [], []
    async with world(server, name) as (database, log):
        audit, clock, random = PostgresAuditStore(database), SystemClock(), SystemRandom()
        last = ""
        for _ in range(REPEATS):
            for _ in range(ENTRIES // GROUP):
                ids = [new_id(AUDIT_ENTRY, clock, random) for _ in range(GROUP)]
                last = ids[-1]
                await audit.record(
                    [
                        NewAuditEntry(
                            audit_entry_id=one,
                            tenant_id=TENANT,
                            actor="ann",
                            action="bench.happened",
                            subject=one,
                        )
                        for one in ids
                    ]
                )
            begun, done = time.perf_counter(), 0
            while leaves := await log.integrate():
                done += leaves
            await log.sign()
            rates.append(done / (time.perf_counter() - begun))
        proof = await log.prove_inclusion(TENANT, last)
        checkpoint = parse_checkpoint(proof.checkpoint).checkpoint
        for _ in range(200):
            begun = time.perf_counter()
            verify_inclusion(
                leaf=leaf_hash(proof.entry.commitment),
                index=proof.entry.log_index,
                size=checkpoint.size,
                path=proof.path,
                root=checkpoint.root,
            )
            verified.append((time.perf_counter() - begun) * 1e6)
    return [
        measured(
            f"{ENTRIES:,} entries integrated, recorded in groups of {GROUP}",
            rates,
            "/s",
            bar="≥ 5,000 /s",
            bar_ok=median(rates) >= 5000,
        ),
        measured(
            f"one inclusion in {checkpoint.size:,} leaves verified, p50", [quantile(verified, 0.5)], "µs"
        ),
    ]


async def announcing(server: PostgresServer, name: str) -> list[Figure]:
    """What the trigger takes of the statement that records."""
    figures = []
    connection = await asyncpg.connect(host=str(server.folder), port=5432, user=OWNER, database=name)
    clock, random = SystemClock(), SystemRandom()
    try:
        for rows in (1, GROUP):
            whole, trigger = [], []
            for _ in range(STATEMENTS):
                ids = [new_id(AUDIT_ENTRY, clock, random) for _ in range(rows)]
                ((plan,),) = await connection.fetch(INSERT, ids)
                (said,) = json.loads(plan)
                (announce,) = said["Triggers"]
                whole.append(said["Execution Time"] * 1000)
                trigger.append(announce["Time"] * 1000)
            figures.append(
                measured(
                    f"announcing {rows} audit entries of one statement, p50",
                    [quantile(trigger, 0.5)],
                    "µs",
                    beside=("the whole statement", [quantile(whole, 0.5)]),
                )
            )
    finally:
        await connection.close(timeout=5)
    return figures


async def bench(server: PostgresServer, name: str) -> list[Figure]:
    owner = create_engine(server.url(name, user=OWNER), application="bench")
    async with owner.begin() as connection:
        await connection.execute(text("INSERT INTO tenants (tenant_id) VALUES ('default')"))
    await owner.dispose()
    return [*await integrating(server, name), *await announcing(server, name)]


def main() -> int:
    binaries = postgres_18_binaries()
    if binaries is None:
        raise SystemExit("PostgreSQL 18 is not installed")
    with running_server(binaries, durable=True) as server:
        return publish("log", asyncio.run(asyncio.wait_for(bench(server, server.new_database()), SECONDS)))


if __name__ == "__main__":
    sys.exit(main())
