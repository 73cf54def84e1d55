"""Spans of the way of one execution. Decides what is kept; exports nothing, waits for nothing, never raises.

A *trail* is what one process did for one request or order: one span, and the spans below it. It is kept or
thrown away as a whole when it ends, for only then is known whether the work failed. Its ids are fixed when it
begins, because they travel on with the order; nothing else is made of it unless it is kept.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from enum import IntEnum
from types import MappingProxyType
from typing import Final, Generic, Protocol, TypeVar

from shared.clock import Clock, Random, SystemClock, SystemRandom
from shared.telemetry import NewIds, TraceParent, read_traceparent

MAX_PARTS: Final = 64
"""Spans below one trail; more are counted and not kept."""
MAX_LINKS: Final = 64
MAX_OPEN: Final = 65_536
"""Trails of one process under way by key; beyond it the oldest is forgotten."""

Value = str | int | float | bool
Attributes = Mapping[str, Value]
NOTHING: Final[Attributes] = MappingProxyType({})
Key = TypeVar("Key", bound=Hashable)

_RATIO_DIGITS: Final = 14
_RATIO_BITS: Final = 4 * _RATIO_DIGITS


class SpanKind(IntEnum):
    """As OTLP numbers them."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Part:
    """One span below a trail, or below another part of it. Times are monotonic seconds."""

    __slots__ = ("attributes", "ended", "failed", "kind", "name", "parent", "span_id", "started", "trail")

    def __init__(
        self, trail: "Trail", name: str, kind: SpanKind, parent: "Part | None", started: float
    ) -> None:
        self.trail = trail
        self.name = name
        self.kind = kind
        self.parent = parent
        self.started = started
        self.ended: float | None = None
        self.failed = ""
        self.attributes: Attributes = NOTHING
        self.span_id = ""
        """Given when it is kept."""

    def end(self, *, at: float | None = None, failed: str = "", **attributes: Value) -> None:
        """It has ended, now or at a monotonic second; `failed` says as what, in one word."""
        self.ended = self.trail.now() if at is None else at
        self.failed = failed
        if attributes:
            self.attributes = attributes


class Trail:
    """What one process does for one request or order.

    Nearly all of them are thrown away, so nothing is made here that a trail which is kept can be given later:
    ids and attributes stay as they came, and spans are made where they are sent.
    """

    __slots__ = (
        "_ended",
        "attributes",
        "dropped",
        "ended",
        "failed",
        "kind",
        "links",
        "name",
        "now",
        "parent",
        "parts",
        "sampled",
        "span_id",
        "started",
        "trace_id",
    )

    def __init__(
        self,
        tracer: "Tracer",
        name: str,
        *,
        kind: SpanKind,
        trace_id: str,
        span_id: str,
        sampled: bool,
        parent: TraceParent | None,
        started: float,
    ) -> None:
        self.now: Callable[[], float] = tracer.now
        """Returns the monotonic second."""
        self._ended = tracer.ended
        self.name = name
        self.kind = kind
        self.trace_id = trace_id
        self.span_id = span_id
        self.sampled = sampled
        """Whether it is kept for sure; what fails is in any case."""
        self.parent = parent
        self.started = started
        self.ended: float | None = None
        self.failed = ""
        self.attributes: Attributes = NOTHING
        self.links: list[TraceParent] = []
        self.parts: list[Part] = []
        self.dropped = 0
        """Parts that found no room."""

    @property
    def context(self) -> TraceParent:
        """Where work below this one belongs."""
        return TraceParent(trace_id=self.trace_id, span_id=self.span_id, sampled=self.sampled)

    @property
    def traceparent(self) -> str:
        """What travels on, so that the next process' span comes below this one."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"

    @property
    def sampled_id(self) -> str:
        """The id of the trace, if it is kept for sure: for an exemplar; else empty."""
        return self.trace_id if self.sampled else ""

    def part(
        self,
        name: str,
        *,
        since: float | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: Part | None = None,
    ) -> Part:
        """Begin a span below this one, now or at a monotonic second."""
        one = Part(self, name, kind, parent, self.now() if since is None else since)
        if len(self.parts) < MAX_PARTS:
            self.parts.append(one)
        else:
            self.dropped += 1
        return one

    def link(self, other: TraceParent | None) -> None:
        """Point to a span of another trace that had a share in this."""
        if other is not None and len(self.links) < MAX_LINKS:
            self.links.append(other)

    def note(self, **attributes: Value) -> None:
        """Say more of it."""
        # Never added to in place: they may be read in another thread by now.
        self.attributes = {**self.attributes, **attributes} if self.attributes else attributes

    def end(self, *, failed: str = "", **attributes: Value) -> None:
        """It has ended. Repeats have no effect."""
        if self.ended is None:
            self.ended = self.now()
            self.failed = failed
            if attributes:
                self.note(**attributes)
            self._ended(self)

    def take_parts(self) -> list[Part]:
        """Return its parts and let go of them: they point to it, and both would wait for the collector."""
        parts, self.parts = self.parts, []
        return parts


class _NoPart(Part):
    def end(self, *, at: float | None = None, failed: str = "", **attributes: Value) -> None:
        """Nothing is kept."""


class _NoTrail(Trail):
    """Stands for a trail where nothing is traced; every method returns at once."""

    @property
    def traceparent(self) -> str:
        """Nothing: what came is passed on as it is."""
        return ""

    def part(self, name: str, **_: object) -> Part:  # noqa: ARG002
        """Return the part that keeps nothing."""
        return NO_PART

    def link(self, other: TraceParent | None) -> None:
        """Nothing is kept."""

    def note(self, **attributes: Value) -> None:
        """Nothing is kept."""

    def end(self, *, failed: str = "", **attributes: Value) -> None:
        """Nothing is kept."""


class SpanSink(Protocol):
    """Takes trails that are kept."""

    def put(self, trail: Trail, *, wall_offset: float) -> None:
        """Keep the spans of a trail that has ended, without waiting, and let go of it.

        `wall_offset` makes seconds since 1970 of monotonic ones.
        """

    def capped(self, reason: str) -> None:
        """A trail was not kept because of the cap: ``sampled`` or ``failed``."""


class Tracer:
    """Begins trails and decides which are kept. Used from one event loop."""

    def __init__(
        self, *, sink: SpanSink | None, ratio: float, max_per_second: int, clock: Clock, random: Random
    ) -> None:
        self._sink = sink
        self._bound = int(ratio * (1 << _RATIO_BITS))
        self._clock = clock
        self.now: Final = clock.monotonic
        """Returns the monotonic second."""
        self._ids = NewIds(random)
        self._sampled = _Bucket(max_per_second, clock)
        self._failed = _Bucket(max_per_second, clock)

    @property
    def is_on(self) -> bool:
        return self._sink is not None

    def begin(
        self, name: str, incoming: str = "", *, kind: SpanKind = SpanKind.INTERNAL, since: float | None = None
    ) -> Trail:
        """Begin a trail below `incoming`, a traceparent; the root of a new trace if it says nothing.

        Whoever began the trace decides whether it is kept, within the cap of this process; of new ones the
        ratio is. One that fails is kept in any case, within a cap of its own.
        """
        if self._sink is None:
            return UNTRACED
        parent = read_traceparent(incoming)
        if parent is None:
            trace_id = self._ids.trace_id()
            wanted = self._is_chosen(trace_id)
        else:
            trace_id = parent.trace_id
            wanted = parent.sampled
        sampled = wanted and self._sampled.take()
        if wanted and not sampled:
            self._sink.capped("sampled")
        return Trail(
            self,
            name,
            kind=kind,
            trace_id=trace_id,
            span_id=self._ids.span_id(),
            sampled=sampled,
            parent=parent,
            started=self.now() if since is None else since,
        )

    def shared(self, name: str, of: Sequence[Trail]) -> Trail:
        """Begin work done once for several trails: a trace of its own, linked with those kept, both ways."""
        kept = [one for one in of if one.sampled]
        if self._sink is None or not kept:
            return UNTRACED
        trail = Trail(
            self,
            name,
            kind=SpanKind.INTERNAL,
            trace_id=self._ids.trace_id(),
            span_id=self._ids.span_id(),
            sampled=True,
            parent=None,
            started=self.now(),
        )
        context = trail.context
        for one in kept:
            trail.link(one.context)
            one.link(context)
        return trail

    def ended(self, trail: Trail) -> None:
        """Keep a trail or not; `Trail.end` calls it."""
        if self._sink is None or not (trail.sampled or (trail.failed and self._has_room_for_failed())):
            trail.take_parts()
            return
        for part in trail.parts:
            part.span_id = self._ids.span_id()
        self._sink.put(trail, wall_offset=self._clock.now().timestamp() - self.now())

    def _has_room_for_failed(self) -> bool:
        has_room = self._failed.take()
        if not has_room and self._sink is not None:
            self._sink.capped("failed")
        return has_room

    def _is_chosen(self, trace_id: str) -> bool:
        return int(trace_id[-_RATIO_DIGITS:], 16) < self._bound


class _Bucket:
    """So many a second, and a second's worth at once."""

    def __init__(self, per_second: int, clock: Clock) -> None:
        self._per_second = per_second
        self._clock = clock
        self._left = float(per_second)
        self._at = clock.monotonic()

    def take(self) -> bool:
        now = self._clock.monotonic()
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class OpenTrails(Generic[Key]):
    """Trails under way by what they are about, for work whose end is seen elsewhere than its beginning."""

    def __init__(self, tracer: Tracer, *, limit: int = MAX_OPEN) -> None:
        self.tracer = tracer
        self._limit = limit
        self._open: OrderedDict[Key, Trail] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def begin(
        self, key: Key, name: str, incoming: str, *, kind: SpanKind, since: float | None = None
    ) -> Trail:
        """Begin a trail that is found again by `key`."""
        trail = self.tracer.begin(name, incoming, kind=kind, since=since)
        if trail is not UNTRACED:
            self._open[key] = trail
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
        return trail

    def of(self, key: Key) -> Trail:
        """Return the trail of a key, or the one that keeps nothing."""
        return self._open.get(key, UNTRACED)

    def end(self, key: Key, *, failed: str = "", **attributes: Value) -> None:
        """End the trail of a key; one that is unknown or ended is nothing to do."""
        trail = self._open.pop(key, None)
        if trail is not None:
            trail.end(failed=failed, **attributes)

    def forget(self, key: Key) -> None:
        """Throw the trail of a key away: what it was about did not come to be."""
        self._open.pop(key, None)


NO_TRACER: Final = Tracer(sink=None, ratio=0, max_per_second=1, clock=SystemClock(), random=SystemRandom())
"""Traces nothing."""

UNTRACED: Final[Trail] = _NoTrail(
    NO_TRACER,
    "",
    kind=SpanKind.INTERNAL,
    trace_id="",
    span_id="",
    sampled=False,
    parent=None,
    started=0.0,
)
NO_PART: Final[Part] = _NoPart(UNTRACED, "", SpanKind.INTERNAL, None, 0.0)
"""Stands for a part where nothing is traced."""
