"""Makes partitions ahead of time and drops old ones, as the owner of the schema, beside a service under load.

What makes or drops takes locks that let reads and writes of a table go on. Only a partition without end that
is in use already is cut with a lock on its table: for milliseconds, or given up and tried again.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control_plane.database.engine import PoolBounds, create_engine
from control_plane.database.errors import database_errors
from control_plane.database.partitions import (
    AUDIT,
    DIVIDED,
    SCHEMA,
    DividedTable,
    Partition,
    Period,
    boundaries,
    bounds_of,
)
from control_plane.database.removal import (
    BodyRemoval,
    forget_salts,
    mark_dropped,
    remove_bodies,
    remove_executions,
)
from shared.clock import Clock, Random
from shared.errors import ConflictError, InvalidInputError
from shared.ids import AUDIT_ENTRY, EXECUTION, id_made_at, least_id, new_id

LEAST_AGE: Final = timedelta(hours=24)
"""Nothing younger may go: uploads nobody used yet and request ids live as long."""
SKEW: Final = timedelta(hours=1)
"""By which ids that belong together may differ, and a clock may be ahead."""
LOCK_TRIES: Final = 50
_SHORT_LOCK: Final = "200ms"
_PAUSE_SECONDS: Final = 0.2
_BOUNDS: Final = PoolBounds(connections=1, statement=timedelta(minutes=10), lock=timedelta(minutes=1))
_DROPPING: Final = "being dropped by retention"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPlan:
    """What shall be."""

    older_than: timedelta | None = None
    """Executions, with all they left, and what else is as old; None: all are kept."""
    audit_older_than: timedelta | None = None
    """Audit entries; None: all are kept."""
    inputs_older_than: timedelta | None = None
    """Inputs; None: as long as their executions."""
    outputs_older_than: timedelta | None = None
    """Outputs, logs and recordings; None: as long as their executions."""
    period: Period = Period.WEEK
    ahead: int = 2
    """Partitions that exist behind the one of today, before the one without end."""
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Refuse an age at which something may be in use.

        Raises:
            InvalidInputError: An age is below 24 hours, or audit entries would go before what they tell of.
        """
        given = (self.older_than, self.audit_older_than, self.inputs_older_than, self.outputs_older_than)
        ages = [age for age in given if age is not None]
        if any(age < LEAST_AGE for age in ages):
            raise InvalidInputError("nothing younger than 24 hours can be dropped")
        if self.audit_older_than and self.older_than and self.audit_older_than < self.older_than:
            raise InvalidInputError("audit entries are kept at least as long as what they tell of")

    def ages_of_bodies(self) -> list[tuple[str, timedelta]]:
        """Return which kinds of bodies go before their executions, and when."""
        ages = (("inputs", self.inputs_older_than), ("outputs", self.outputs_older_than))
        return [(kind, age) for kind, age in ages if age is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retained:
    """What was done; with a dry run, what would be."""

    made: tuple[str, ...]
    dropped: tuple[Partition, ...]
    executions: int
    """Removed executions."""
    bodies: int
    """Removed inputs, outputs, logs and recordings whose executions are kept."""
    held_back_by: str | None
    """The execution that has not ended and keeps partitions, if one does."""


async def retain(
    owner_url: str, plan: RetentionPlan, *, clock: Clock, random: Random, tenant: str
) -> Retained:
    """Make partitions ahead and drop what is older than the plan keeps. Repeat: continues where it was.

    An execution that has not ended keeps what is as old as it and all later. Each dropped partition is one
    audit entry of `tenant`, in the same transaction.

    Raises:
        ConflictError: A table in the schema of partitions belongs to none, or another one does this now.
        DatabaseUnavailableError: Postgres is away, or locks did not come.
        SettingsError: `owner_url` is no URL of a Postgres database.
    """
    engine = create_engine(owner_url, application="agentfactory-retention", bounds=_BOUNDS)
    try:
        with database_errors():
            async with _alone(engine) as connection:
                return await _Keeper(connection, plan, clock, random, tenant).run()
    finally:
        await engine.dispose()


@asynccontextmanager
async def _alone(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a connection outside transactions; only one does this at a time."""
    async with engine.connect() as plain:
        connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
        if not await connection.scalar(
            text("SELECT pg_try_advisory_lock(hashtext('agentfactory retention'))")
        ):
            raise ConflictError("another retention is running on this database")
        yield connection


class _Keeper:
    def __init__(
        self, connection: AsyncConnection, plan: RetentionPlan, clock: Clock, random: Random, tenant: str
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._clock = clock
        self._random = random
        self._tenant = tenant

    async def run(self) -> Retained:
        if not self._plan.dry_run:
            await self._finish_interrupted()
        now = self._clock.now()
        made: list[str] = []
        for table in DIVIDED:
            made += await self._make_ahead(table, now)
        oldest, holder = await self._oldest_open()
        found = [one for table in DIVIDED for one in await self._partitions(table)]
        wanted = [one for one in found if self._is_old(one, now)]
        old = [
            one for one in wanted if one.table.name == AUDIT or oldest is None or one.ends_by(oldest - SKEW)
        ]
        bodies = await self._remove_bodies()
        executions = await self._remove_executions(old)
        dropped = [one for one in old if self._plan.dry_run or await self._drop(one)]
        held = len(dropped) < len(wanted)
        return Retained(
            made=tuple(made),
            dropped=tuple(dropped),
            executions=executions,
            bodies=bodies,
            held_back_by=holder if held else None,
        )

    def _is_old(self, partition: Partition, now: datetime) -> bool:
        is_audit = partition.table.name == AUDIT
        age = self._plan.audit_older_than if is_audit else self._plan.older_than
        return age is not None and partition.ends_by(now - age - SKEW)

    async def _partitions(self, table: DividedTable) -> list[Partition]:
        rows = await self._connection.execute(
            text(
                """SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds,
                    pg_total_relation_size(c.oid) AS size_bytes, i.inhdetachpending AS detaching
                FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = CAST(:name AS regclass)"""
            ),
            {"name": table.name},
        )
        found = []
        for row in rows:
            lower, upper = bounds_of(row.bounds)
            found.append(
                Partition(
                    table=table,
                    name=row.name,
                    lower=lower,
                    upper=upper,
                    size_bytes=row.size_bytes,
                    detaching=row.detaching,
                )
            )
        return sorted(found, key=lambda one: one.lower.timestamp() if one.lower else 0.0)

    async def _do(self, *statements: str) -> None:
        for statement in statements:
            await self._connection.exec_driver_sql(statement)

    async def _holds(self, name: str) -> bool:
        return bool(await self._connection.scalar(text(f"SELECT EXISTS (SELECT FROM {SCHEMA}.{name})")))  # noqa: S608 - a name of our own

    # -- what an earlier run left --

    async def _finish_interrupted(self) -> None:
        for table in DIVIDED:
            for one in await self._partitions(table):
                if one.detaching:
                    await self._do(f"ALTER TABLE {table.name} DETACH PARTITION {SCHEMA}.{one.name} FINALIZE")
        rows = await self._connection.execute(
            text(
                """SELECT relname, obj_description(oid, 'pg_class') AS comment FROM pg_class
                WHERE relnamespace = CAST(:schema AS regnamespace) AND relkind = 'r' AND NOT relispartition"""
            ),
            {"schema": SCHEMA},
        )
        for row in rows:
            name, comment = str(row.relname), row.comment
            owner = next((one for one in DIVIDED if name.startswith(f"{one.name}_")), None)
            if comment != _DROPPING or owner is None:
                if await self._holds(name):
                    raise ConflictError(
                        f"table {SCHEMA}.{name} belongs to no partitioned table and is not empty",
                        hint="attach it again, or drop it by hand",
                    )
                await self._do(f"DROP TABLE {SCHEMA}.{name}")
            elif await self._input_is_needed(owner, name):
                raise ConflictError(
                    f"table {SCHEMA}.{name} was detached, and an execution that has not ended needs it",
                    hint="attach it again",
                )
            else:
                await self._drop_detached(owner, name)

    # -- ahead --

    async def _make_ahead(self, table: DividedTable, now: datetime) -> list[str]:
        found = await self._partitions(table)
        last = found[-1]
        if last.upper is None:
            begin, made = last.lower, []
        else:  # an earlier run was interrupted
            begin, made = last.upper, [_name(table, last.upper)]
        cuts = boundaries(self._plan.period, tail=begin, now=now, ahead=self._plan.ahead)
        names = [*made, *(_name(table, cut) for cut in cuts)]
        if self._plan.dry_run:
            return names
        if last.upper is not None:
            await self._do(*_new(table, made[0]), _attach(table, made[0], last.upper, None))
        for cut in cuts:
            tail = (await self._partitions(table))[-1]
            if tail.lower is None or tail.lower <= now + SKEW or await self._holds(tail.name):
                await self._cut_in_use(tail, cut)
            else:
                await self._cut_unused(tail, cut)
        return names

    async def _cut_unused(self, tail: Partition, end: datetime) -> None:
        table, name, behind = tail.table, tail.name, _name(tail.table, end)
        await self._do(f"ALTER TABLE {table.name} DETACH PARTITION {SCHEMA}.{name} CONCURRENTLY")
        # Its old bounds. What was made in it meanwhile, by a clock hours ahead, stays in it or fails here.
        for check in await self._checks(name):
            await self._do(f"ALTER TABLE {SCHEMA}.{name} DROP CONSTRAINT {check}")
        await self._do(
            _attach(table, name, tail.lower, end), *_new(table, behind), _attach(table, behind, end, None)
        )

    async def _cut_in_use(self, tail: Partition, end: datetime) -> None:
        table, name, behind = tail.table, tail.name, _name(tail.table, end)
        low = f"{table.column} >= '{table.least_id(tail.lower)}' AND " if tail.lower else ""
        bounds = f"CHECK ({low}{table.column} < '{table.least_id(end)}')"
        # Proved before, with no lock that anybody waits for: attaching it again need not read it.
        await self._do(f"ALTER TABLE {SCHEMA}.{name} DROP CONSTRAINT IF EXISTS closing")
        await self._with_short_lock(f"ALTER TABLE {SCHEMA}.{name} ADD CONSTRAINT closing {bounds} NOT VALID")
        await self._do(f"ALTER TABLE {SCHEMA}.{name} VALIDATE CONSTRAINT closing")
        await self._with_short_lock(
            *_new(table, behind),
            f"ALTER TABLE {table.name} DETACH PARTITION {SCHEMA}.{name}",
            _attach(table, name, tail.lower, end),
            _attach(table, behind, end, None),
            f"ALTER TABLE {SCHEMA}.{name} DROP CONSTRAINT closing",
        )

    async def _checks(self, name: str) -> Sequence[str]:
        rows = await self._connection.execute(
            text(
                "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid = CAST(:name AS regclass)"
            ),
            {"name": f"{SCHEMA}.{name}"},
        )
        return rows.scalars().all()

    async def _with_short_lock(self, *statements: str) -> None:
        """Run statements in one transaction that gives up instead of making others wait behind it."""
        for left in reversed(range(LOCK_TRIES)):
            await self._do("BEGIN", f"SET LOCAL lock_timeout = '{_SHORT_LOCK}'")
            try:
                await self._do(*statements, "COMMIT")
            except DBAPIError:
                await self._do("ROLLBACK")
                if not left:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return

    # -- old --

    async def _oldest_open(self) -> tuple[datetime | None, str | None]:
        """Return since when something is needed by an execution that has not ended, and its id."""
        rows = await self._connection.execute(
            text(
                """(SELECT execution_id, input_body_id FROM executions WHERE state IN ('pending', 'running')
                    ORDER BY execution_id LIMIT 1) UNION ALL
                (SELECT execution_id, input_body_id FROM executions WHERE state IN ('pending', 'running')
                    ORDER BY input_body_id LIMIT 1)"""
            )
        )
        found = [(id_made_at(one), row.execution_id) for row in rows for one in row]
        return min(found, default=(None, None))

    async def _remove_bodies(self) -> int:
        removed = 0
        for kind, age in self._plan.ages_of_bodies():
            entry = new_id(AUDIT_ENTRY, self._clock, self._random)
            removal = BodyRemoval(kind=kind, before=self._clock.now() - age, tenant=self._tenant)
            removed += await remove_bodies(self._connection, removal, entry, dry_run=self._plan.dry_run)
        return removed

    async def _remove_executions(self, old: Sequence[Partition]) -> int:
        """Remove executions whose evidence goes now; before it, so that no late receipt finds half of one."""
        ends = [one.upper for one in old if one.upper is not None and one.table.name != AUDIT]
        if not ends:
            return 0
        below = least_id(EXECUTION.prefix, max(ends) + SKEW)
        return await remove_executions(self._connection, below, dry_run=self._plan.dry_run)

    async def _drop(self, partition: Partition) -> bool:
        """Detach and drop it; put it back when something needs it after all."""
        table, name = partition.table, f"{SCHEMA}.{partition.name}"
        await self._do(
            f"COMMENT ON TABLE {name} IS '{_DROPPING}'",
            f"ALTER TABLE {table.name} DETACH PARTITION {name} CONCURRENTLY",
        )
        # Whoever could still see it has ended: what was accepted with a body of it is visible now.
        if await self._input_is_needed(table, partition.name):
            await self._do(
                _attach(table, partition.name, partition.lower, partition.upper),
                f"COMMENT ON TABLE {name} IS NULL",
            )
            return False
        await self._drop_detached(table, partition.name)
        return True

    async def _drop_detached(self, table: DividedTable, name: str) -> None:
        await forget_salts(self._connection, table.name, f"{SCHEMA}.{name}")
        await self._do("BEGIN")
        await mark_dropped(self._connection, table.name, f"{SCHEMA}.{name}")
        await self._do(f"DROP TABLE {SCHEMA}.{name}")
        await self._connection.execute(
            text(
                """INSERT INTO audit_entries (audit_entry_id, tenant_id, actor, action, subject, details)
                VALUES (:id, :tenant, 'system', 'retention.dropped', :subject,
                    jsonb_build_object('table', CAST(:table AS text)))"""
            ),
            {
                "id": new_id(AUDIT_ENTRY, self._clock, self._random),
                "tenant": self._tenant,
                "subject": name,
                "table": table.name,
            },
        )
        await self._do("COMMIT")

    async def _input_is_needed(self, table: DividedTable, name: str) -> bool:
        if table.name != "bodies":
            return False
        needed = text(
            f"""SELECT EXISTS (SELECT FROM executions e JOIN {SCHEMA}.{name} b ON b.body_id = e.input_body_id
            WHERE e.state IN ('pending', 'running'))"""  # noqa: S608 - a name of our own
        )
        return bool(await self._connection.scalar(needed))


def _name(table: DividedTable, lower: datetime) -> str:
    return f"{table.name}_{lower:%Y%m%d%H}"


def _new(table: DividedTable, name: str) -> list[str]:
    statements = [f"CREATE TABLE {SCHEMA}.{name} (LIKE {table.name} INCLUDING DEFAULTS INCLUDING STORAGE)"]
    if table.settings:
        statements.append(f"ALTER TABLE {SCHEMA}.{name} SET ({table.settings})")
    if table.unique:
        statements.append(f"CREATE UNIQUE INDEX ON {SCHEMA}.{name} ({table.unique})")
    return statements


def _attach(table: DividedTable, name: str, lower: datetime | None, upper: datetime | None) -> str:
    low = f"'{table.least_id(lower)}'" if lower else "MINVALUE"
    high = f"'{table.least_id(upper)}'" if upper else "MAXVALUE"
    return f"ALTER TABLE {table.name} ATTACH PARTITION {SCHEMA}.{name} FOR VALUES FROM ({low}) TO ({high})"
