import pytest

from shared.errors import InvalidInputError
from shared.telemetry import (
    NewIds,
    parse_traceparent,
    read_traceparent,
    sampled_trace_id,
)
from tests.fakes.clock import FakeRandom

EXAMPLE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MALFORMED = [
    "",
    EXAMPLE.upper(),
    "00-" + "0" * 32 + "-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
    EXAMPLE + "-extra",
    EXAMPLE + "\n",
]


def test_example_of_the_specification_survives():
    parsed = parse_traceparent(EXAMPLE)
    assert str(parsed) == EXAMPLE
    assert parsed.sampled


@pytest.mark.parametrize("text", [*MALFORMED, EXAMPLE.replace("00-", "01-", 1)])
def test_other_text_is_no_traceparent(text):
    with pytest.raises(InvalidInputError):
        parse_traceparent(text)


@pytest.mark.parametrize("text", [*MALFORMED, "ff" + EXAMPLE[2:], "01" + EXAMPLE[2:] + "x", "01" * 4000])
def test_malformed_header_says_nothing_and_is_no_error(text):
    assert read_traceparent(text) is None


@pytest.mark.parametrize("rest", ["", "-what-comes-later"])
def test_header_of_a_later_version_counts_by_its_first_fields(rest):
    assert str(read_traceparent("cc" + EXAMPLE[2:] + rest)) == EXAMPLE


def test_new_ids_are_never_the_invalid_ones():
    class Zeroes(FakeRandom):
        def token_bytes(self, count: int) -> bytes:
            return bytes(count)

    ids = NewIds(Zeroes())
    assert (ids.trace_id(), ids.span_id()) == ("1".zfill(32), "1".zfill(16))


def test_new_ids_are_whole_and_never_repeat_however_many_are_drawn_at_once():
    ids = NewIds(FakeRandom())
    found = [(ids.trace_id(), ids.span_id()) for _ in range(2000)]
    assert all((len(trace_id), len(span_id)) == (32, 16) for trace_id, span_id in found)
    digits = [
        one[at : at + 16]
        for trace_id, span_id in found
        for one, at in ((trace_id, 0), (trace_id, 16), (span_id, 0))
    ]
    assert len(set(digits)) == len(digits)
    assert read_traceparent(f"00-{found[0][0]}-{found[0][1]}-01") is not None


@pytest.mark.parametrize(
    ("text", "expected"), [(EXAMPLE, EXAMPLE[3:35]), (EXAMPLE[:-1] + "0", ""), ("x-01", ""), ("", "")]
)
def test_exemplar_is_of_a_trace_that_is_kept(text, expected):
    assert expected == sampled_trace_id(text)
