"""Paths of tiles, as C2SP tlog-tiles writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.gateway.public_log import TilePath
from shared.errors import NotFoundError

KNOWN = {
    "0/000": (0, 0, 256),
    "0/999": (0, 999, 256),
    "0/x001/000": (0, 1000, 256),
    "1/x001/x234/067": (1, 1234067, 256),
    "1/x001/x234/067.p/5": (1, 1234067, 5),
    "7/000.p/255": (7, 0, 255),
}


@pytest.mark.parametrize("text", KNOWN)
def test_examples(text):
    assert TilePath.parse(text) == KNOWN[text]


@given(st.integers(0, 7), st.integers(0, 10**18 - 1), st.integers(1, 256))
def test_there_and_back(level, index, width):
    path = TilePath(level, index, width)
    assert TilePath.parse(str(path)) == path


@given(st.text(alphabet="0123456789x/.p", max_size=30))
def test_one_tile_has_one_path(text):
    try:
        path = TilePath.parse(text)
    except NotFoundError:
        return
    assert str(path) == text


@pytest.mark.parametrize(
    "text",
    ["", "0", "0/", "0/00", "0/x000/000", "0/x001", "0/1000", "8/000", "-1/000", "00/000", "0/000.p/0",
     "0/000.p/256", "0/000.p/257", "0/000.p/01", "0/000.p/", "0/000/", "entries/000", "0/" + "x001/" * 6 + "000"],
    ids=range(18),
)  # fmt: skip
def test_what_is_none_is_not_found(text):
    with pytest.raises(NotFoundError):
        TilePath.parse(text)
