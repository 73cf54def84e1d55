"""How tables that grow are divided by time: which, by what column, from when to when. No I/O, no clock.

An id is a prefix and a UUIDv7, so ids of one kind sort as the times of their making, and a range of ids is a
range of time. The newest partition of a table has no end: there is always one, at worst a large one.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from shared.ids import id_made_at, least_id

SCHEMA: Final = "partitions"
"""Where partitions are. The service has no right in it: it comes through the tables alone."""

_DECEMBER: Final = 12
_BOUNDS: Final = re.compile(
    r"FOR VALUES FROM \((?:MINVALUE|'(?P<lower>[^']+)')\) TO \((?:MAXVALUE|'(?P<upper>[^']+)')\)"
)


class Period(StrEnum):
    """The length of one partition; each begins at midnight UTC."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"

    def after(self, at: datetime) -> datetime:
        """Return the first boundary later than `at`: a midnight, a Monday, a first of the month."""
        day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self is Period.DAY:
            return day + timedelta(days=1)
        if self is Period.WEEK:
            return day + timedelta(days=7 - day.weekday())
        if day.month == _DECEMBER:
            return day.replace(year=day.year + 1, month=1, day=1)
        return day.replace(month=day.month + 1, day=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DividedTable:
    """One table that is divided."""

    name: str
    column: str
    prefix: str
    """Of the ids in that column."""
    settings: str = ""
    """Storage settings of each partition; a divided table itself has none."""
    unique: str = ""
    """Columns that are unique within each partition, beside the table's key."""

    def least_id(self, at: datetime) -> str:
        """Return the bound in that column between what was made before `at` and what is made later."""
        return least_id(self.prefix, at)


DIVIDED: Final = (
    DividedTable(name="bodies", column="body_id", prefix="bod"),
    DividedTable(name="decisions", column="decision_id", prefix="dec"),
    DividedTable(name="orders", column="order_id", prefix="ord"),
    DividedTable(name="order_batches", column="batch_id", prefix="obt"),
    DividedTable(
        name="receipts",
        column="order_id",
        prefix="ord",
        settings="toast_tuple_target = 8160",
        unique="node_id, sequence",
    ),
    DividedTable(name="audit_entries", column="audit_entry_id", prefix="aud"),
)
AUDIT: Final = "audit_entries"
"""It has a time of its own to be kept: it says what happened to everything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition as it is in the database."""

    table: DividedTable
    name: str
    lower: datetime | None
    """None: from the beginning."""
    upper: datetime | None
    """None: without end."""
    size_bytes: int
    detaching: bool = False
    """Its detaching was interrupted."""

    def ends_by(self, at: datetime) -> bool:
        """Whether everything in it was made before `at`."""
        return self.upper is not None and self.upper <= at


def bounds_of(definition: str) -> tuple[datetime | None, datetime | None]:
    """Return lower and upper bound of Postgres' text of a partition's bounds.

    Raises:
        ValueError: They are no range of one id.
    """
    found = _BOUNDS.fullmatch(definition)
    if found is None:
        raise ValueError(f"{definition!r} is no range of ids")
    lower, upper = (id_made_at(one) if one else None for one in found.group("lower", "upper"))
    return lower, upper


def boundaries(period: Period, *, tail: datetime | None, now: datetime, ahead: int) -> list[datetime]:
    """Return where the partition without end, which begins at `tail`, is to be cut; empty: not yet.

    The last boundary is the beginning of the new one without end: `ahead` periods behind the one of `now`.
    """
    last = now
    for _ in range(ahead + 1):
        last = period.after(last)
    begin = now if tail is None else max(tail, now)
    cuts = []
    while (begin := period.after(begin)) <= last:
        cuts.append(begin)
    return cuts
