"""A node store and how to look at what it recorded."""

from dataclasses import dataclass
from typing import Any

from control_plane.database.unit_of_work import PostgresDatabase


class Told:
    """What other replicas would hear."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, tuple[str, ...]]] = []

    def notify(self, channel: str, payloads: Any = ()) -> None:
        self.notes.append((channel, tuple(payloads)))

    def notify_others(self, channel: str, payloads: Any = ()) -> None:
        self.notify(channel, payloads)


@dataclass
class Stage:
    """A store, and how to look at what it recorded."""

    nodes: Any
    told: Told | None
    database: PostgresDatabase | None

    async def actions(self) -> list[str]:
        if self.database is None:
            return [entry.action for entry in self.nodes.audit]
        async with self.database.driver() as connection:
            rows = await connection.fetch("SELECT action FROM audit_entries ORDER BY audit_entry_id")
        return [row["action"] for row in rows]
