"""Our evaluation of schemas beside the reference implementation for Python, over random schemas and values."""

import jsonschema
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidInputError
from shared.schemas import JsonSchema

NAMES = st.sampled_from(["a", "b", "c"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1.0, "", "a", "éé"]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
SMALL = st.integers(0, 3)
TYPES = ["array", "boolean", "integer", "null", "number", "object", "string"]


def schemas_within(inner):
    several = st.lists(inner, min_size=1, max_size=3)
    named = st.dictionaries(NAMES, inner, max_size=3)
    names = st.lists(NAMES, unique=True, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), unique=True, min_size=1),
            "enum": st.lists(VALUES, max_size=3),
            "const": VALUES,
            "multipleOf": st.integers(1, 3),
            **dict.fromkeys(
                ["maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"], st.integers(-3, 3)
            ),
            **dict.fromkeys(["maxLength", "minLength", "maxItems", "minItems"], SMALL),
            **dict.fromkeys(["maxProperties", "minProperties", "minContains", "maxContains"], SMALL),
            "uniqueItems": st.booleans(),
            "required": names,
            "dependentRequired": st.dictionaries(NAMES, names, max_size=2),
            "dependentSchemas": named,
            "properties": named,
            **dict.fromkeys(["additionalProperties", "propertyNames", "items", "contains", "not"], inner),
            **dict.fromkeys(["if", "then", "else"], inner),
            **dict.fromkeys(["allOf", "anyOf", "oneOf", "prefixItems"], several),
        },
    )


SCHEMAS = st.recursive(st.booleans(), schemas_within, max_leaves=8).filter(
    lambda schema: isinstance(schema, dict)
)


@settings(max_examples=300, deadline=None)
@given(SCHEMAS, VALUES)
def test_a_value_fits_exactly_when_the_reference_says_so(schema, value):
    ours = True
    try:
        JsonSchema.from_object(schema).check(value, "value")
    except InvalidInputError:
        ours = False
    assert ours == jsonschema.Draft202012Validator(schema).is_valid(value)
