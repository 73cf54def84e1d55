"""The bars of the bench beside peers, at and beyond each of them."""

from dataclasses import replace

import pytest

from tests.bench.peers.figures import Visits, bars, plain
from tests.bench.peers.visit import Visit

OURS = Visit(
    peer="agent-factory",
    durable=True,
    cold_start_s=3,
    alone_p50_ms=4,
    alone_p95_ms=5,
    alone_p99_ms=6,
    loaded_per_s=1000,
    loaded_p95_ms=70,
    half_p50_ms=5,
    half_p95_ms=10,
    memory_mb={"postgres": 100, "control plane": 120, "node": 80},
    fdatasync_p50_us=150,
    client_cpus=0.3,
    others_cpus=0.1,
    jobs=10000,
    streamed_per_s=2000,
)
PGQUEUER = replace(OURS, peer="pgqueuer", loaded_per_s=500, half_p95_ms=14, alone_p50_ms=4)
ECHO = replace(OURS, peer="echo", loaded_per_s=4000)


def bar_of(figure, *visits):
    (found,) = [one for one in bars(Visits(visits)) if one.figure == figure]
    return found


@pytest.mark.parametrize(
    ("peer", "figure", "theirs_met", "theirs_missed"),
    [
        ("celery", "64 in flight ÷ celery", 400, 401),
        ("procrastinate", "64 in flight ÷ procrastinate", 285, 286),
        ("pgqueuer", "64 in flight ÷ pgqueuer", 714, 715),
        ("nats", "64 in flight ÷ nats", 666, 667),
        ("echo", "64 in flight ÷ echo", 5000, 5001),
        ("echo", "64 in flight, streamed ÷ echo", 4000, 4001),
        ("agent-factory-bare", "64 in flight ÷ agent-factory-bare", 1250, 1251),
    ],
)
def test_throughput_is_compared_with_each_peer(peer, figure, theirs_met, theirs_missed):
    theirs = replace(OURS, peer=peer)

    assert bar_of(figure, OURS, replace(theirs, loaded_per_s=theirs_met)).bar_ok is True
    assert bar_of(figure, OURS, replace(theirs, loaded_per_s=theirs_missed)).bar_ok is False


@pytest.mark.parametrize(("ours", "met"), [(5.6, True), (5.61, False)])
def test_the_p50_at_one_in_flight_is_at_most_that_much_of_pgqueuers(ours, met):
    figure = bar_of("1 in flight, p50 ÷ pgqueuer", replace(OURS, alone_p50_ms=ours), PGQUEUER)

    assert figure.bar_ok is met


@pytest.mark.parametrize(
    ("ours", "theirs", "met"), [(14, 14, True), (14.1, 14, False), (20, 30, True), (20.1, 30, False)]
)
def test_the_p95_at_half_load_has_two_bars(ours, theirs, met):
    pgqueuer = replace(PGQUEUER, half_p95_ms=theirs)

    figure = bar_of("half load, open loop, p95", replace(OURS, half_p95_ms=ours), pgqueuer)

    assert figure.bar_ok is met


@pytest.mark.parametrize(("node", "met"), [(100, True), (100.1, False)])
def test_the_memory_is_that_of_all_processes(node, met):
    ours = replace(OURS, memory_mb={**OURS.memory_mb, "node": node})

    figure = bar_of("memory of control plane + node + Postgres at 64 in flight", ours)

    assert figure.bar_ok is met


def test_medians_over_the_visits_count_and_not_the_best():
    fast, slow = replace(OURS, loaded_per_s=9000), replace(OURS, loaded_per_s=100)

    figure = bar_of("64 in flight ÷ echo", slow, ECHO, OURS, ECHO, fast, ECHO)

    assert (figure.value, figure.reference_value, figure.repeats) == (1000, 4000, 3)
    assert figure.spread == pytest.approx(8.9)


def test_without_a_peer_there_is_no_bar_about_it():
    assert [figure.figure for figure in bars(Visits([OURS]))] == [
        "memory of control plane + node + Postgres at 64 in flight"
    ]
    assert bars(Visits([ECHO, PGQUEUER])) == []


def test_every_figure_of_every_peer_is_stored():
    names = [figure.figure for figure in plain(Visits([OURS, ECHO]))]

    assert len(names) == len(set(names))
    assert {"echo: cold start", "agent-factory: memory, sum of PSS", "fdatasync of 8 KiB, p50"} <= set(names)
