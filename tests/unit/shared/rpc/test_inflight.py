"""No peer takes a whole server."""

from contextlib import ExitStack

import pytest

from shared.errors import ResourceExhaustedError
from shared.rpc.inflight import RETRY_AFTER, InFlight, RpcBounds

BOUNDS = RpcBounds(
    of_others_than_nodes=6,
    of_caller=4,
    of_node=3,
    streams_of_identity=2,
    of_anonymous=2,
    streams_of_anonymous=1,
)
ANN, BOB, EVE = (f"spiffe://local/caller/{name}" for name in ("ann", "bob", "eve"))
NODE = "spiffe://local/node/nod_1"


@pytest.fixture
def held():
    with ExitStack() as stack:
        yield stack


def open_calls(held, in_flight, identity, count, *, stream=False):
    for _ in range(count):
        held.enter_context(in_flight.count(identity, stream=stream))


@pytest.mark.parametrize(
    ("identity", "stream", "most"),
    [(ANN, False, 4), (ANN, True, 2), (NODE, False, 3), (NODE, True, 2), (None, False, 2), (None, True, 1)],
)
def test_each_peer_has_its_bound(held, identity, stream, most):
    in_flight = InFlight(BOUNDS)
    open_calls(held, in_flight, identity, most, stream=stream)
    with pytest.raises(ResourceExhaustedError), in_flight.count(identity, stream=stream):
        pass


def test_streams_leave_room_for_calls(held):
    in_flight = InFlight(BOUNDS)
    open_calls(held, in_flight, ANN, 2, stream=True)
    open_calls(held, in_flight, ANN, 2)


def test_callers_together_leave_room_for_nodes(held):
    in_flight = InFlight(BOUNDS)
    open_calls(held, in_flight, EVE, 4)
    open_calls(held, in_flight, BOB, 2)
    with pytest.raises(ResourceExhaustedError), in_flight.count(ANN, stream=False):
        pass
    open_calls(held, in_flight, NODE, 2, stream=True)


def test_what_has_ended_counts_no_more(held):
    in_flight = InFlight(BOUNDS)
    for _ in range(3):
        with ExitStack() as some:
            open_calls(some, in_flight, ANN, 2, stream=True)
    open_calls(held, in_flight, ANN, 2, stream=True)
    assert len(in_flight._peers) == 1


def test_a_caller_that_is_named_like_a_node_is_none(held):
    in_flight = InFlight(BOUNDS)
    open_calls(held, in_flight, "spiffe://local/caller/node", 4)


@pytest.mark.parametrize("stream", [True, False])
def test_who_is_refused_hears_when_to_come_again(held, stream):
    in_flight = InFlight(BOUNDS)
    with pytest.raises(ResourceExhaustedError) as refused:
        open_calls(held, in_flight, ANN, 100, stream=stream)
    assert refused.value.retry_after == RETRY_AFTER
