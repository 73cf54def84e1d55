"""A transparency log that nobody looks at."""

from collections.abc import Collection
from datetime import timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry

from data_plane.metrics import NodeMetrics
from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.log_check import LogCheck, LogRequire
from data_plane.orders.log_view import LogOffer, LogView
from shared.errors import UnavailableError
from shared.signatures import FileSigner, PublicKey
from tests.fakes.clock import FakeClock


class LogKey(FileSigner):
    """Implements `LogKeys`."""

    async def public(self) -> PublicKey | None:
        return self.key.public


class SilentLog:
    """Implements `LogObserver`."""

    def log_integrated(self, leaves: int, seconds: float) -> None: ...
    def log_size(self, tree_size: int) -> None: ...


class NoLog:
    """Implements `Inclusion` and `LogSource`."""

    async def include(self, subjects: Collection[str]) -> bool:
        return bool(subjects)

    async def read_log(self, known_size: int, attempt: object) -> LogOffer:
        raise UnavailableError(
            f"no log is served, nor what continues {known_size} leaves of it for {attempt}"
        )


def unchecked(keyset: NodeKeyset, metrics: NodeMetrics | None = None) -> LogCheck:
    """Return the check of a node that does not look at the log."""
    clock, max_age = FakeClock(), timedelta(seconds=60)
    view = LogView(
        keyset=keyset,
        installation=keyset.installation,
        path=Path("/nonexistent/log.checkpoint"),
        max_age=max_age,
        clock=clock,
    )
    return LogCheck(
        view=view,
        source=NoLog(),
        require=LogRequire.OFF,
        max_age=max_age,
        metrics=metrics or NodeMetrics(CollectorRegistry(), clock),
        clock=clock,
    )
