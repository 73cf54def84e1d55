import pytest
import rfc8785

from shared.canonical import MAX_DEPTH, MAX_DOCUMENT_BYTES, canonical_json, parse_canonical, parse_strict
from shared.errors import InvalidInputError, MalformedError

# RFC 8785 section 3.2.2 and 3.2.3, as in the text.
RFC_INPUT = rb"""{
  "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
  "literals": [null, true, false]
}"""
RFC_OUTPUT = (
    b'{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
    b'"string":"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
)


def test_example_of_rfc_8785():
    assert canonical_json(parse_strict(RFC_INPUT)) == RFC_OUTPUT
    assert parse_canonical(RFC_OUTPUT) == parse_strict(RFC_INPUT)


def test_keys_sort_by_utf_16_as_rfc_8785_says():
    document = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\u00f6": 7}
    assert list(parse_strict(canonical_json(document)).values()) == [2, 4, 6, 7, 1, 5, 3]


@pytest.mark.parametrize(
    "text",
    ["\u2014 dash", "\u2028\u2029", "\x7f\x80\x1f", "\U0001f600", "\ufb33\ufeff", '\u00e9\\"/\n'],
    ids=ascii,
)
def test_texts_beyond_ascii_are_written_as_the_other_implementation_does(text):
    for document in ({"a": text, "b": [text, 1]}, {text: 1, "\ufb33": 2, "\U0001f600x": [text]}):
        assert canonical_json(document) == rfc8785.dumps(document)
        assert parse_canonical(rfc8785.dumps(document)) == document


def test_a_lone_surrogate_has_no_canonical_form():
    with pytest.raises(InvalidInputError):
        canonical_json({"a": "\ud800"})
    with pytest.raises(MalformedError):
        parse_canonical(b'{"a":"\\ud800"}')


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a":1,"a":2}', "occurs twice"),
        (b'{"x":{"a":1,"\\u0061":2}}', "occurs twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "Infinity"),
        (b'{"a":1e999}', "range of a double"),
        (b'{"a":9007199254740993}', "2\\^53"),
        (b'{"a":' + b"9" * 5000 + b"}", "2\\^53"),
        (b"[]", "not an object"),
        (b'"text"', "not an object"),
        (b"", "not a JSON document"),
        (b'{"a":1', "not a JSON document"),
        (b'{"a":1}{"a":1}', "not a JSON document"),
        (b'{"a":"\xff"}', "not a JSON document"),
        (b'\xef\xbb\xbf{"a":1}', "not a JSON document"),
    ],
)
def test_what_strict_reading_refuses(data, why):
    with pytest.raises(MalformedError, match=why):
        parse_strict(data)


def test_depth_is_bounded_before_the_parser_sees_it():
    at_bound = b'{"a":' * (MAX_DEPTH - 1) + b"{}" + b"}" * (MAX_DEPTH - 1)
    parse_strict(at_bound)
    with pytest.raises(MalformedError, match="nested deeper"):
        parse_strict(b'{"a":' * MAX_DEPTH + b"{}" + b"}" * MAX_DEPTH)
    with pytest.raises(MalformedError, match="nested deeper"):
        parse_strict(b"[" * 100_000)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 40 + b'"' + b'\\"' * 500_000,
        b"{" + b",".join(b'"%d":1' % n for n in range(90_000)) + b',"89999":2}',
        b'{"a":' + b"9" * 1_000_000 + b"}",
        b'{"a":0.' + b"9" * 1_000_000 + b"e999}",
    ],
    ids=["unclosed string", "late duplicate", "long integer", "long double"],
)
def test_hostile_document_within_the_bound_costs_no_more_than_its_size(data):
    assert len(data) <= MAX_DOCUMENT_BYTES
    with pytest.raises(MalformedError):
        parse_strict(data)


def test_brackets_in_strings_are_no_depth():
    parse_strict(b'{"a":"' + b"[{" * 1000 + b'\\"[[\\\\"}')


def test_size_is_bounded_to_the_byte():
    data = b'{"a":1}'
    parse_strict(data, max_bytes=len(data))
    with pytest.raises(MalformedError, match="the bound is 6"):
        parse_strict(data, max_bytes=len(data) - 1)


@pytest.mark.parametrize(
    "data", [b'{"a": 1}', b'{"b":1,"a":2}', b'{"a":1.0}', b'{"a":"\\u0041"}', b'{"a":1}\n', b'{"a":-0}']
)
def test_a_second_encoding_of_the_same_value_is_not_canonical(data):
    parse_strict(data)
    with pytest.raises(MalformedError, match="RFC 8785"):
        parse_canonical(data)


def test_lone_surrogate_is_refused_both_ways():
    with pytest.raises(InvalidInputError):
        canonical_json({"a": "\ud800"})
    with pytest.raises(MalformedError):
        parse_canonical(b'{"a":"\\ud800"}')


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": 2**53}, {1: 2}, {"a": {1, 2}}, {"a": b"x"}])
def test_what_has_no_canonical_form(value):
    with pytest.raises(InvalidInputError, match="no canonical JSON form"):
        canonical_json(value)
