"""Check 20: template and policy of an order are in the transparency log. Asks, and keeps the view fresh.

So nobody can be told to run what the others are not told of: what is not in the one log does not run, and
two logs do not stay hidden. An order costs two look-ups here; the first one of a template costs a question.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final, NoReturn

from data_plane.metrics import NodeMetrics
from data_plane.orders.domain import AttemptRef, attempt_of
from data_plane.orders.log_view import LogView
from data_plane.orders.ports import LogSource
from data_plane.orders.verifier import Check
from shared.clock import Clock
from shared.errors import AgentFactoryError, LogForkedError, OrderRejectedError, RejectionReason
from shared.log_leaf import Fact, policy_fact, template_fact
from shared.logs import get_logger
from shared.orders import Order

logger = get_logger(__name__)

REFRESHES: Final = 3
"""Questions within the bound on a checkpoint's age, so that one that fails does no harm."""
RETRY: Final = timedelta(seconds=1)
"""Between questions while none was answered; so long a refusal is remembered as well."""
MAX_REFUSED: Final = 1024


class LogRequire(StrEnum):
    """What the operator of a node asks of the log."""

    OFF = "off"
    WHEN_GIVEN = "when_given"
    """For a control plane that is older than the node: one that proves nothing is believed."""
    ALWAYS = "always"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSeen:
    """What the node tells others of its view."""

    size: int
    root: bytes
    problem: str


class LogCheck:
    """One node's check. Used from one event loop."""

    def __init__(
        self,
        *,
        view: LogView,
        source: LogSource,
        require: LogRequire,
        max_age: timedelta,
        metrics: NodeMetrics,
        clock: Clock,
    ) -> None:
        self._view = view
        self._source = source
        self._require = require
        self._max_age = max_age
        self._metrics = metrics
        self._clock = clock
        self._asking = asyncio.Lock()
        self._silent_until = 0.0
        self._refused: OrderedDict[tuple[str, ...], tuple[float, OrderRejectedError]] = OrderedDict()
        self.changed: Callable[[], None] = _nothing
        """Called when the log is not believed any more; set by the node."""

    def problem(self) -> str:
        """Return why the log lets no order be taken at all; empty: it may."""
        return "" if self._require is LogRequire.OFF else self._view.fork

    def seen(self) -> LogSeen | None:
        """Return what to tell of the view; None when nothing was seen."""
        newest, problem = self._view.newest, self.problem()
        if newest is None and not problem:
            return None
        size, root = (0, b"") if newest is None else (newest.size, newest.root)
        return LogSeen(size=size, root=root, problem=problem[:256])

    async def require(self, order: Order) -> None:
        """Check 20.

        Raises:
            OrderRejectedError: Template or policy are not proved to be in the log, under a checkpoint that is
                young enough; or the log is forked. Another node may be better off.
        """
        if self._require is LogRequire.OFF:
            return
        facts = (template_fact(order.tenant_id, order.template_digest), policy_fact(order.policy_digest))
        if self._is_proved(facts):
            return
        async with self._asking:
            if self._is_proved(facts):
                return
            self._refuse_again(facts)
            try:
                await self._ask(facts, attempt_of(order))
            except OrderRejectedError as error:
                self._remember(facts, error)
                raise

    async def run(self) -> NoReturn:
        """Keep the checkpoint young until cancelled."""
        problem = ""
        while True:
            before, problem = problem, await self._refresh()
            if problem and problem != before:
                logger.warning("the log was not read", detail=problem)
            settled = self._view.is_fresh() or self._require is LogRequire.OFF
            await asyncio.sleep((self._max_age / REFRESHES if settled else RETRY).total_seconds())

    async def _refresh(self) -> str:
        """Ask for the checkpoint alone; return what went wrong."""
        try:
            async with self._asking:
                await self._ask((), None)
        except AgentFactoryError as error:
            return str(error)
        return ""

    def _is_proved(self, facts: Sequence[Fact]) -> bool:
        if self._view.fork:
            raise _rejected("LOG_FORKED", self._view.fork)
        if self._require is LogRequire.WHEN_GIVEN and self._clock.monotonic() < self._silent_until:
            return True
        return self._view.is_fresh() and all(map(self._view.holds, facts))

    async def _ask(self, facts: Sequence[Fact], attempt: AttemptRef | None) -> None:
        if self._require is LogRequire.OFF:
            return
        if self._view.fork:
            raise _rejected("LOG_FORKED", self._view.fork)
        asked_at = self._clock.monotonic()
        try:
            offer = await self._source.read_log(self._view.known_size, attempt)
        except AgentFactoryError as error:
            if self._require is LogRequire.WHEN_GIVEN:
                if attempt is None:
                    return
                self._silent_until = self._clock.monotonic() + RETRY.total_seconds()
                return
            raise _rejected("LOG_UNAVAILABLE", f"{error.reason}: {error}") from error
        try:
            self._view.take(offer, facts, asked_at=asked_at)
        except AgentFactoryError as error:
            self._metrics.log_failures.labels(error.reason).inc()
            logger.error("the log does not prove what it should", reason=error.reason, detail=str(error))  # noqa: TRY400 - no bug here
            if isinstance(error, LogForkedError):
                self.changed()
            raise _rejected(error.reason, str(error)) from error
        for fact in facts:
            if not self._view.holds(fact):
                raise _rejected("NOT_LOGGED", f"{fact.kind} {fact.subject} is not in the log")

    def _refuse_again(self, facts: Sequence[Fact]) -> None:
        """Answer as a moment ago: what is asked for again and again must not keep slots waiting."""
        found = self._refused.pop(_name(facts), None)
        if found is not None and self._clock.monotonic() < found[0]:
            self._refused[_name(facts)] = found
            raise found[1].with_traceback(None)

    def _remember(self, facts: Sequence[Fact], error: OrderRejectedError) -> None:
        self._refused[_name(facts)] = (self._clock.monotonic() + RETRY.total_seconds(), error)
        while len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)


def _name(facts: Sequence[Fact]) -> tuple[str, ...]:
    return tuple(fact.subject for fact in facts)


def _rejected(reason: str, problem: str) -> OrderRejectedError:
    # Stale, which every control plane knows: it is not counted against the execution.
    return OrderRejectedError(f"{reason}: {problem}", check=Check.LOG, rejection=RejectionReason.STALE)


def _nothing() -> None:
    """Nobody listens."""
