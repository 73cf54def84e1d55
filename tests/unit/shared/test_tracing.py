"""What is kept of the work of one process, and what is not."""

import weakref
from datetime import timedelta

import pytest

from shared.telemetry import parse_traceparent
from shared.tracing import (
    MAX_LINKS,
    MAX_PARTS,
    NO_PART,
    NO_TRACER,
    UNTRACED,
    OpenTrails,
    Part,
    SpanKind,
    Tracer,
)
from tests.fakes.clock import FakeClock, FakeRandom

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = SAMPLED[:-1] + "0"


class Kept:
    def __init__(self):
        self.trails = []
        self.offsets = []
        self.reasons = []

    def put(self, trail, *, wall_offset):
        self.trails.append(trail)
        self.offsets.append(wall_offset)

    def capped(self, reason):
        self.reasons.append(reason)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def kept():
    return Kept()


def tracer(kept, clock, *, ratio=0.0, cap=1000):
    return Tracer(sink=kept, ratio=ratio, max_per_second=cap, clock=clock, random=FakeRandom())


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize(("incoming", "expected"), [(SAMPLED, True), (NOT_SAMPLED, False)])
def test_who_began_the_trace_decides_whatever_the_ratio_is(kept, clock, ratio, incoming, expected):
    trail = tracer(kept, clock, ratio=ratio).begin("work", incoming)
    trail.end()

    assert expected == (trail in kept.trails)
    told = parse_traceparent(trail.traceparent)
    parent = parse_traceparent(incoming)
    assert (told.trace_id, told.sampled) == (parent.trace_id, expected)
    assert told.span_id != parent.span_id
    assert trail.parent == parent


@pytest.mark.parametrize("incoming", ["", "junk", "x" * 10_000])
def test_without_a_readable_parent_a_trace_begins(kept, clock, incoming):
    trail = tracer(kept, clock, ratio=1).begin("work", incoming)
    assert trail.parent is None
    assert trail.context.sampled


def test_ratio_of_new_traces_is_kept(kept, clock):
    one = tracer(kept, clock, ratio=0.1, cap=100_000)
    for _ in range(10_000):
        one.begin("work").end()
    assert len(kept.trails) == pytest.approx(1000, rel=0.15)


def test_what_fails_is_kept_whole_though_nobody_chose_it(kept, clock):
    trail = tracer(kept, clock).begin("work", NOT_SAMPLED)
    trail.part("before").end()
    trail.end(failed="killed")

    assert kept.trails == [trail]
    assert [part.name for part in trail.parts] == ["before"]
    assert all(part.span_id for part in trail.parts)
    assert not trail.context.sampled, "those behind were told that it is not kept"


def test_failure_of_a_part_alone_is_none_of_the_whole(kept, clock):
    trail = tracer(kept, clock).begin("work")
    trail.part("tried").end(failed="once")
    trail.end()
    assert not kept.trails


@pytest.mark.parametrize(("ratio", "failed", "reason"), [(1.0, "", "sampled"), (0.0, "lost", "failed")])
def test_cap_holds_in_each_second_and_is_counted(kept, clock, ratio, failed, reason):
    one = tracer(kept, clock, ratio=ratio, cap=3)
    for expected in (3, 6):
        for _ in range(5):
            one.begin("work").end(failed=failed)
        assert len(kept.trails) == expected
        clock.advance(timedelta(seconds=1))
    assert kept.reasons == [reason] * 4


def test_callers_that_want_everything_kept_meet_the_same_cap(kept, clock):
    one = tracer(kept, clock, cap=2)
    told = [one.begin("work", SAMPLED).context.sampled for _ in range(4)]
    assert told == [True, True, False, False]


def test_parts_and_links_are_bounded_and_what_found_no_room_is_counted(kept, clock):
    trail = tracer(kept, clock, ratio=1).begin("work")
    for _ in range(MAX_PARTS + 7):
        trail.part("call").end()
    for _ in range(MAX_LINKS + 7):
        trail.link(parse_traceparent(SAMPLED))
    assert (len(trail.parts), trail.dropped, len(trail.links)) == (MAX_PARTS, 7, MAX_LINKS)


def test_work_done_together_points_to_those_kept_and_is_none_without(kept, clock):
    one = tracer(kept, clock)
    seen, unseen = one.begin("work", SAMPLED), one.begin("work", NOT_SAMPLED)
    assert one.shared("sign", [unseen, UNTRACED]) is UNTRACED
    shared = one.shared("sign", [unseen, UNTRACED, seen])
    shared.end()
    assert kept.trails == [shared]
    assert shared.links == [seen.context]
    assert seen.links == [shared.context]
    assert unseen.links == []
    assert shared.trace_id != seen.trace_id


def test_parts_of_what_is_thrown_away_need_no_collector_to_go(kept, clock):
    trail = tracer(kept, clock).begin("work", NOT_SAMPLED)
    part = weakref.ref(Watched(trail))
    trail.end()
    assert part() is None


class Watched(Part):
    """A part of a trail that can be watched."""

    __slots__ = ("__weakref__",)

    def __init__(self, trail):
        super().__init__(trail, "part", SpanKind.INTERNAL, None, 0.0)
        trail.parts.append(self)


def test_a_trail_ends_once(kept, clock):
    trail = tracer(kept, clock, ratio=1).begin("work")
    trail.end(failed="killed")
    trail.end()
    assert kept.trails == [trail]
    assert trail.failed == "killed"


def test_wall_time_is_that_of_the_end(kept, clock):
    trail = tracer(kept, clock, ratio=1).begin("work")
    clock.advance(timedelta(seconds=5))
    trail.end()
    assert trail.ended - trail.started == 5
    assert kept.offsets == [clock.now().timestamp() - clock.monotonic()]


def test_open_trails_are_bounded_and_found_by_what_they_are_about(kept, clock):
    trails = OpenTrails[str](tracer(kept, clock, ratio=1), limit=2)
    for key in "abc":
        trails.begin(key, key, "", kind=SpanKind.SERVER)
    assert len(trails) == 2
    assert trails.of("a") is UNTRACED
    trails.forget("b")
    trails.end("c", state="done")
    trails.end("c")
    assert [(one.name, one.attributes) for one in kept.trails] == [("c", {"state": "done"})]
    assert not len(trails)


def test_where_nothing_is_traced_nothing_is_made():
    trails = OpenTrails[str](NO_TRACER)
    trail = trails.begin("a", "work", SAMPLED, kind=SpanKind.SERVER)
    assert trail is UNTRACED
    assert not len(trails)
    assert trail.part("part") is NO_PART
    NO_PART.end(at=1.0, failed="lost", more=1)
    trail.note(more=1)
    trail.link(parse_traceparent(SAMPLED))
    trail.end(failed="lost")
    assert (trail.traceparent, trail.sampled_id, trail.attributes, trail.links) == ("", "", {}, [])
    assert NO_PART.attributes == {}
