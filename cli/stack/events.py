"""What happens in a running stack, one line an event: audit entries, and what its processes warn of."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from cli.client import connect
from cli.settings import CliSettings
from cli.stack.children import Child
from shared.errors import AgentFactoryError

POLL: Final = timedelta(milliseconds=250)
RETRY: Final = timedelta(seconds=1)
FOLLOW_TIMEOUT: Final = timedelta(hours=24)
MAX_LINE_CHARS: Final = 300
MAX_READ_BYTES: Final = 256 * 1024
SHOWN_LEVELS: Final = frozenset({"warning", "error", "critical"})
POSTGRES_WORDS: Final = ("ERROR:", "FATAL:", "PANIC:")
_PLAIN: Final = frozenset({"event", "level", "timestamp", "logger", "exception", "exc_info"})

Say = Callable[[str], None]


async def follow_audit(settings: CliSettings, say: Say) -> None:
    """Print every audit entry from now on, through interruptions, until cancelled."""
    from agentfactory.v1 import audit_pb2

    after = ""
    while True:
        try:
            async with connect(settings) as client:
                request = audit_pb2.WatchAuditEntriesRequest(after=after)
                stream = client.audit.WatchAuditEntries(request, timeout=FOLLOW_TIMEOUT.total_seconds())
                async for change in stream:
                    after = change.audit_entry.audit_entry_id
                    say(describe(change.audit_entry))
        except AgentFactoryError as error:
            say(f"audit entries cannot be followed: {error}")
        await asyncio.sleep(RETRY.total_seconds())


def describe(entry: Any) -> str:
    """Return an audit entry as one line."""
    actor = str(entry.actor).rsplit("/", 1)[-1]
    result = "" if entry.result == "ok" else f" → {entry.result}"
    details = "" if entry.details in {"", "{}"} else f" {entry.details}"
    return f"{entry.action} {entry.subject} by {actor}{result}{details}"[:MAX_LINE_CHARS]


async def follow_logs(children: Sequence[Child], say: Say) -> None:
    """Print what the processes warn of, until cancelled. Their whole logs stay in the files."""
    places = {child.spec.log: child.log_start for child in children}
    names = {child.spec.log: child.spec.name for child in children}
    while True:
        for log, place in places.items():
            lines, places[log] = _read_lines(log, place)
            for line in lines:
                for shown in condense(line):
                    say(f"{names[log]}: {shown}"[:MAX_LINE_CHARS])
        await asyncio.sleep(POLL.total_seconds())


def _read_lines(log: Path, place: int) -> tuple[list[str], int]:
    """Return the whole lines after ``place`` and where they end."""
    try:
        with log.open("rb") as file:
            file.seek(place)
            data = file.read(MAX_READ_BYTES)
    except OSError:
        return [], place
    whole = data[: data.rfind(b"\n") + 1] or (data if len(data) == MAX_READ_BYTES else b"")
    return whole.decode(errors="replace").splitlines(), place + len(whole)


def condense(line: str) -> Iterator[str]:
    """Yield the line for a terminal when a log line is a warning or worse."""
    if line.startswith("{"):
        try:
            record = json.loads(line)
        except ValueError:
            return
        if record.get("level") in SHOWN_LEVELS:
            extra = " ".join(f"{name}={value}" for name, value in record.items() if name not in _PLAIN)
            yield f"{record['level']}: {record.get('event', '')} {extra}".rstrip()
    elif any(word in line for word in POSTGRES_WORDS):
        yield line.strip()
