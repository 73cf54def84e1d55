"""SPIFFE ids: the one form that is taken, and what is refused."""

import pytest

from shared.errors import UnauthenticatedError
from shared.ids import InstallationId, NodeId
from shared.rpc.identity import caller, node_spiffe_id, parse_spiffe_id


def test_an_identity_survives_the_round_trip():
    text = node_spiffe_id(InstallationId("local"), NodeId("nod_1"))
    assert str(parse_spiffe_id(text)) == text == "spiffe://local/node/nod_1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://local",
        "spiffe://local/node",
        "spiffe://local/node/",
        "spiffe://local/node/a/b",
        "spiffe://local/node/..%2f",
        "spiffe://local/root/a",
        "spiffe://LOCAL/node/a",
        "spiffe://user@local/node/a",
        "https://local/node/a",
        "spiffe://local/node/a\n",
        " spiffe://local/node/a",
        "spiffe://local/node/" + "a" * 129,
        "spiffe://local/caller/a?x=1",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(UnauthenticatedError):
        parse_spiffe_id(text)


def test_outside_an_rpc_there_is_no_caller():
    with pytest.raises(UnauthenticatedError):
        caller()
