"""The format of a sealed body, and what an attacker who writes into the database can do with it: nothing."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.body_keys.domain import BodyKeyId
from control_plane.body_keys.sealing import (
    HEADER_BYTES,
    SEALED_SEGMENT_BYTES,
    SEGMENT_BYTES,
    BodyPlace,
    key_of,
    open_segments,
    open_whole,
    seal,
    span_of,
)
from shared.errors import InternalError
from shared.ids import BodyId, TenantId

KEY, SALT = bytes(range(32)), b"s" * 16
KEY_ID = BodyKeyId("bky_01900000-0000-7000-8000-000000000001")
SIZES = [0, 1, 1024, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES + 7]


def place_of(content, **changes):
    place = BodyPlace(tenant_id=TenantId("red"), body_id=BodyId("bod_1"), size_bytes=len(content))
    return replace(place, **changes)


def sealed(content, salt=SALT):
    return seal(content, place=place_of(content), key_id=KEY_ID, key=KEY, salt=salt)


def text(size):
    return bytes(n * 7 % 251 for n in range(size))


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sealed_opens_again_and_names_its_key(size):
    stored = sealed(text(size))
    assert open_whole(stored, place=place_of(text(size)), key=KEY) == text(size)
    assert key_of(stored[:HEADER_BYTES]) == KEY_ID


@pytest.mark.parametrize("size", SIZES)
def test_a_sealed_body_is_longer_than_its_size_by_which_it_is_known(size):
    assert len(sealed(text(size))) > size


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3 * SEGMENT_BYTES + 7), st.integers(1, 2 * SEGMENT_BYTES))
def test_any_piece_is_read_from_the_segments_that_hold_it(offset, most):
    content = text(3 * SEGMENT_BYTES + 7)
    stored, span = sealed(content), span_of(offset, most)
    segments = stored[span.start_bytes : span.start_bytes + span.length_bytes]
    plain = open_segments(stored[:HEADER_BYTES], segments, first=span.first, place=place_of(content), key=KEY)
    start = offset - span.first * SEGMENT_BYTES
    assert plain[start : start + most] == content[offset : offset + most]


def test_no_byte_of_it_can_be_changed():
    stored = sealed(b"secret input")
    for n in range(len(stored)):
        changed = stored[:n] + bytes([stored[n] ^ 1]) + stored[n + 1 :]
        with pytest.raises(InternalError):
            open_whole(changed, place=place_of(b"secret input"), key=KEY)


@pytest.mark.parametrize(
    "elsewhere",
    [{"tenant_id": TenantId("blue")}, {"body_id": BodyId("bod_2")}, {"size_bytes": 11}, {"size_bytes": 13}],
    ids=["tenant", "body", "shorter", "longer"],
)
def test_it_cannot_be_passed_off_as_another(elsewhere):
    with pytest.raises(InternalError):
        open_whole(sealed(b"secret input"), place=place_of(b"secret input", **elsewhere), key=KEY)


def test_segments_cannot_be_swapped_left_out_or_cut():
    content = text(3 * SEGMENT_BYTES)
    stored = sealed(content)
    head, body = stored[:HEADER_BYTES], stored[HEADER_BYTES:]
    one, two, three = (body[n * SEALED_SEGMENT_BYTES : (n + 1) * SEALED_SEGMENT_BYTES] for n in range(3))
    for attack in (two + one + three, one + two, one + two + two, one + two + three[:-1], b"", body + one):
        with pytest.raises(InternalError):
            open_whole(head + attack, place=place_of(content), key=KEY)


def test_an_empty_body_is_bound_too():
    with pytest.raises(InternalError):
        open_whole(sealed(b"")[:HEADER_BYTES], place=place_of(b""), key=KEY)


def test_another_key_opens_nothing():
    with pytest.raises(InternalError):
        open_whole(sealed(b"secret input"), place=place_of(b"secret input"), key=bytes(32))


def test_the_same_body_sealed_twice_shows_nothing_in_common():
    first, second = (sealed(text(1000), salt)[HEADER_BYTES:] for salt in (b"a" * 16, b"b" * 16))
    assert sum(x == y for x, y in zip(first, second, strict=True)) < 50


@pytest.mark.parametrize("header", [b"", b"\x02" + b"x" * 56, b"\x01" + b"\xff" * 56])
def test_what_is_no_header_is_refused(header):
    with pytest.raises(InternalError):
        key_of(header)
