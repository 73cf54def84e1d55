"""Schemas are written by strangers and judge the JSON of strangers: what they cost is bounded."""

import time

import pytest

from shared.errors import InvalidInputError, ManifestInvalidError
from shared.schemas import MAX_SCHEMA_BYTES, MAX_VIOLATIONS, JsonSchema

PATIENCE_S = 2.0
"""Of the processor, however busy the machine: far above the 50 ms that the worst accepted case takes; without
bounds these take from seconds to for ever.
"""


@pytest.fixture(autouse=True)
def stopwatch():
    started = time.process_time()
    yield
    assert time.process_time() - started < PATIENCE_S


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": []},
        {"$schema": "http://json-schema.org/draft-07/schema#"},
        {"minimum": "1"},
        {"minLength": -1},
        {"required": ["a", "a"]},
        {"properties": {"a": 3}},
        {"allOf": []},
        {"maxlength": 3},
        {"properties": {"a": {"$id": "https://a.test/"}}},
        {"$defs": {"a": {"type": "nonsense"}}},
        {"then": {"type": "nonsense"}},
        {"maxContains": -1},
    ],
)
def test_what_is_no_schema_is_refused(schema):
    with pytest.raises(ManifestInvalidError):
        JsonSchema.from_object(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://evil.test/schema.json"},
        {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
        {"allOf": [{"$dynamicRef": "other#x"}]},
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"$ref": "#/$defs/nowhere"},
    ],
)
def test_reference_to_anything_but_a_definition_is_refused(schema):
    with pytest.raises(ManifestInvalidError):
        JsonSchema.from_object(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "^(a+)+$"},
        {"patternProperties": {"^(a+)+$": {}}},
        {"properties": {"x": {"items": {"pattern": "a"}}}},
    ],
)
def test_catastrophic_pattern_is_refused_before_anybody_evaluates_it(schema):
    with pytest.raises(ManifestInvalidError, match="regular expressions are not evaluated"):
        JsonSchema.from_object(schema)


def test_reference_in_a_circle_is_refused():
    loop = {"a": {"properties": {"x": {"$ref": "#/$defs/b"}}}, "b": {"items": {"$ref": "#/$defs/a"}}}
    with pytest.raises(ManifestInvalidError, match="refers to itself"):
        JsonSchema.from_object({"$defs": loop})


@pytest.mark.parametrize("levels", [14, 20, 40, 400])
def test_references_that_double_at_each_level_stop_nobody(levels):
    defs = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(levels)}
    defs[f"d{levels}"] = {}
    with pytest.raises((ManifestInvalidError, InvalidInputError)):
        JsonSchema.from_object({"$defs": defs, "$ref": "#/$defs/d0"}).check({}, "parameters")


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{}] * 600},
        {"allOf": [{} for _ in range(30_000)]},
        {"properties": {f"p{i}": {} for i in range(9000)}},
        {"description": "x" * MAX_SCHEMA_BYTES},
    ],
    ids=["600 allOf", "30000 allOf", "9000 properties", "too many bytes"],
)
def test_schema_of_thousands_of_schemas_is_refused_at_once(schema):
    with pytest.raises(ManifestInvalidError):
        JsonSchema.from_object(schema)


def test_schema_nested_beyond_the_interpreters_stack_is_refused():
    schema = {}
    for _ in range(5000):
        schema = {"not": schema}
    with pytest.raises(ManifestInvalidError):
        JsonSchema.from_object(schema)


def test_work_of_one_check_is_bounded_whatever_schema_and_value_are():
    fan = {"u": {"uniqueItems": True}, "a": {"allOf": [{"$ref": "#/$defs/u"}] * 100}}
    fan["b"] = {"allOf": [{"$ref": "#/$defs/a"}] * 100}
    schema = JsonSchema.from_object({"$defs": fan, "$ref": "#/$defs/b"})
    schema.check({}, "parameters")
    with pytest.raises(InvalidInputError, match=r"cannot be checked .* within 60000 steps"):
        schema.check([[number] for number in range(9000)], "parameters")


def test_unique_items_of_many_unlike_values_take_no_square():
    schema = JsonSchema.from_object({"uniqueItems": True})
    values = [item for number in range(2000) for item in (number, str(number), [number / 7])]
    with pytest.raises(InvalidInputError):
        schema.check([*values, [0.0]], "parameters")


def test_schema_checks_values_and_never_repeats_them():
    schema = JsonSchema.from_object(
        {"$defs": {"n": {"type": "integer"}}, "properties": {"secret": {"$ref": "#/$defs/n"}}}
    )
    schema.check({"secret": 3}, "parameters")
    with pytest.raises(
        InvalidInputError,
        match=r"parameters breaks rule 'type' .* at /secret: expected integer, got string of",
    ) as caught:
        schema.check({"secret": "hunter2"}, "parameters")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "fits", "breaks"),
    [
        ({"type": "integer"}, 1.0, True),
        ({"type": ["string", "null"]}, None, False),
        ({"enum": [1, "1", [1]]}, [1.0], True),
        ({"const": {"a": 1}}, {"a": 1.0}, {"a": True}),
        ({"uniqueItems": True}, [1, True, "1", [1], [True]], [1, 1.0]),
        ({"multipleOf": 0.1}, 0.3, 0.35),
        ({"exclusiveMinimum": 1}, 1.5, 1),
        ({"maxLength": 2}, "éé", "ééé"),
        ({"minProperties": 1}, {"a": 1}, {}),
        ({"required": ["a"]}, {"a": None}, {}),
        ({"dependentRequired": {"a": ["b"]}}, {"b": 1}, {"a": 1}),
        ({"dependentSchemas": {"a": {"required": ["b"]}}}, {"b": 1}, {"a": 1}),
        ({"properties": {"a": {}}, "additionalProperties": False}, {"a": 1}, {"b": 1}),
        ({"additionalProperties": {"type": "string"}}, {"b": "x"}, {"b": 1}),
        ({"propertyNames": {"maxLength": 1}}, {"a": 1}, {"ab": 1}),
        ({"prefixItems": [{"type": "string"}], "items": {"type": "null"}}, ["a", None], ["a", 1]),
        ({"contains": {"const": 1}, "maxContains": 1}, [1, 2], [1, 1]),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, "a", 1),
        ({"oneOf": [{"minimum": 1}, {"maximum": 3}]}, 0, 2),
        ({"not": {"type": "null"}}, 1, None),
        ({"if": {"type": "string"}, "then": {"minLength": 1}, "else": {"type": "null"}}, "a", ""),
        ({"items": False}, [], [1]),
    ],
)
def test_keywords_mean_what_the_draft_says(schema, fits, breaks):
    checked = JsonSchema.from_object(schema)
    checked.check(fits, "value")
    with pytest.raises(InvalidInputError):
        checked.check(breaks, "value")


def violations(schema, value, **options):
    with pytest.raises(InvalidInputError) as caught:
        JsonSchema.from_object(schema).check(value, "parameters", **options)
    return {one.field: one.description for one in caught.value.violations}


def test_every_wrong_field_is_named_with_what_was_expected_and_what_kind_was_found():
    schema = {
        "properties": {
            "depth": {"type": "integer", "maximum": 5},
            "level": {"enum": ["low", "high"]},
            "a/b~c": {"maxLength": 1},
            "tags": {"items": {"type": "string"}},
        },
        "required": ["name"],
        "additionalProperties": False,
    }
    value = {"depth": 6, "level": None, "a/b~c": "xy", "tags": ["a", 1, True], "more": {}}
    assert violations(schema, value) == {
        "parameters/depth": "expected at most 5, got integer",
        "parameters/level": 'expected one of "low", "high", got null',
        "parameters/a~1b~0c": "expected at most 1 characters, got string of 2 characters",
        "parameters/tags/1": "expected string, got integer",
        "parameters/tags/2": "expected string, got boolean",
        "parameters/name": "expected a value, got nothing",
        "parameters/more": "expected no such property, got object of 0 properties",
    }


def test_what_is_named_is_bounded():
    schema = JsonSchema.from_object({"items": {"type": "string"}})
    with pytest.raises(InvalidInputError) as caught:
        schema.check([1] * 1000, "parameters")
    assert len(caught.value.violations) == MAX_VIOLATIONS
    assert len(str(caught.value)) < 300


def test_one_place_is_named_even_when_looking_for_all_takes_too_long():
    schema = JsonSchema.from_object({"properties": {"a": {"type": "null"}, "b": {"uniqueItems": True}}})
    value = {"a": 1, "b": [[number] for number in range(9000)]}
    with pytest.raises(InvalidInputError, match="/a: expected null, got integer") as caught:
        schema.check(value, "parameters")
    assert len(caught.value.violations) == 1


@pytest.mark.parametrize(
    "value",
    [
        "hunter2",
        {"secret": "root"},
        {"secret": "token", "more": 1},
        {"secret": 1},
        {"secret": ["token"]},
        {},
        None,
    ],
)
def test_where_a_secret_is_named_nothing_else_may_stand(value):
    schema = JsonSchema.from_object({"properties": {"token": {"format": "secret-ref"}}})
    schema.check({"token": {"secret": "token"}}, "parameters", secrets=("token",))
    with pytest.raises(InvalidInputError) as caught:
        schema.check({"token": value}, "parameters", secrets=("token",))
    assert "hunter2" not in f"{caught.value} {caught.value.violations}"


def test_a_body_can_name_no_secret():
    assert violations({"format": "secret-ref"}, {"secret": "token"}) == {
        "parameters": "expected the name of a secret that the template's capabilities list,"
        " got object of 1 properties"
    }


@pytest.mark.parametrize(
    ("schema", "given", "filled"),
    [
        ({"properties": {"a": {"default": 1}, "b": {}}}, {}, {"a": 1}),
        ({"properties": {"a": {"default": 1}}}, {"a": None}, {"a": None}),
        ({"properties": {"a": {"properties": {"b": {"default": 2}}}}}, {}, {}),
        ({"properties": {"a": {"properties": {"b": {"default": 2}}}}}, {"a": {}}, {"a": {"b": 2}}),
        (
            {"properties": {"a": {"default": {}, "properties": {"b": {"default": 2}}}}},
            {},
            {"a": {"b": 2}},
        ),
        ({"items": {"properties": {"a": {"default": 1}}}}, [{}, {"a": 2}, 3], [{"a": 1}, {"a": 2}, 3]),
        ({"$defs": {"d": {"default": 1}}, "properties": {"a": {"$ref": "#/$defs/d"}}}, {}, {"a": 1}),
        (
            {"allOf": [{"properties": {"a": {"default": 1}}}, {"properties": {"a": {"default": 2}}}]},
            {},
            {"a": 2},
        ),
        ({"anyOf": [{"properties": {"a": {"default": 1}}}]}, {}, {}),
        ({"properties": {"default": {"type": "string"}}}, {}, {}),
    ],
)
def test_defaults_are_filled_in_where_they_apply_whatever_the_value_is(schema, given, filled):
    JsonSchema.from_object(schema).fill(given, "parameters")
    assert given == filled


def test_defaults_are_not_shared_between_the_values_that_get_them():
    schema = JsonSchema.from_object({"items": {"properties": {"a": {"default": []}}}})
    first = [{}, {}]
    schema.fill(first, "parameters")
    first[0]["a"].append(1)
    assert first[1] == {"a": []}
    again = [{}]
    schema.fill(again, "parameters")
    assert again == [{"a": []}]


def test_filling_in_is_bounded():
    schema = JsonSchema.from_object({"items": {"properties": {"a": {"default": list(range(1000))}}}})
    with pytest.raises(InvalidInputError, match="within 60000 steps"):
        schema.fill([{} for _ in range(1000)], "parameters")
