"""Summarises an access log: how much, how fast, what failed, and in which hours."""

import re
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime

from agentfactory_guest import Host

LINE = re.compile(
    r'(?P<client>\S+) \S+ \S+ \[(?P<at>[^\]]+)\] "(?P<method>[A-Z]+) (?P<path>\S+)[^"]*" '
    r"(?P<status>\d{3}) (?P<bytes>\d+|-) (?P<ms>\d+(?:\.\d+)?)"
)
MAX_NAMED = 5


@dataclass
class Input:
    text: str
    slow_ms: float = 500.0


@dataclass
class PathFigures:
    path: str
    requests: int
    errors: int
    median_ms: float
    p95_ms: float


@dataclass
class Output:
    lines: int
    unreadable: int
    requests_by_hour: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    clients: int = 0
    slowest: list[PathFigures] = field(default_factory=list)
    slow_requests: int = 0


def run(given: Input, host: Host) -> Output:
    """Return the summary; lines that are no access log are counted, not guessed."""
    summary = Output(lines=0, unreadable=0)
    times: dict[str, list[float]] = defaultdict(list)
    errors: Counter[str] = Counter()
    hours: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    clients = set()
    for line in filter(None, given.text.splitlines()):
        summary.lines += 1
        if (found := LINE.match(line)) is None:
            summary.unreadable += 1
            continue
        path = found["path"].partition("?")[0]
        took = float(found["ms"])
        at = datetime.strptime(found["at"], "%d/%b/%Y:%H:%M:%S %z")
        hours[at.strftime("%Y-%m-%dT%H:00%z")] += 1
        statuses[found["status"]] += 1
        clients.add(found["client"])
        times[path].append(took)
        errors[path] += found["status"].startswith("5")
        summary.bytes += 0 if found["bytes"] == "-" else int(found["bytes"])
        summary.slow_requests += took > given.slow_ms
    summary.requests_by_hour = dict(sorted(hours.items()))
    summary.statuses = dict(sorted(statuses.items()))
    summary.clients = len(clients)
    summary.slowest = sorted(
        (figures(path, each, errors[path]) for path, each in times.items()), key=lambda one: -one.p95_ms
    )[:MAX_NAMED]
    host.log.info("summarised", lines=summary.lines, unreadable=summary.unreadable)
    return summary


def figures(path: str, times: list[float], errors: int) -> PathFigures:
    """Return the figures of one path; of a single request every figure is its time."""
    p95 = statistics.quantiles(times, n=20, method="inclusive")[-1] if len(times) > 1 else times[0]
    return PathFigures(
        path=path,
        requests=len(times),
        errors=errors,
        median_ms=statistics.median(times),
        p95_ms=round(p95, 3),
    )
