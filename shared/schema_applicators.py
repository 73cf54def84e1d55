"""Rules of JSON Schema (Core, draft 2020-12) that apply other schemas to a value or to its parts. Pure."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from shared.canonical import JsonObject
from shared.schema_rules import FITS, Broken, Findings, Rule, Schema, Work, natural, wrong_keyword

Child = Callable[[Any], Schema]
"""Compiles a schema within the one that is being compiled."""


def _several(keyword: str, value: Any, child: Child) -> tuple[Schema, ...]:
    if not isinstance(value, list) or not value:
        raise wrong_keyword(keyword, "a list of at least one schema")
    return tuple(child(one) for one in value)


def _named(keyword: str, value: Any, child: Child) -> dict[str, Schema]:
    if not isinstance(value, dict):
        raise wrong_keyword(keyword, "an object of schemas")
    return {name: child(one) for name, one in value.items()}


def _gathered(parts: Iterable[Findings], most: int) -> Findings:
    """Return the findings of all parts, asked one by one until there are enough."""
    found = FITS
    for one in parts:
        found += one
        if len(found) >= most:
            break
    return found


def _below(found: Findings, key: str | int) -> Findings:
    return tuple(one.below(key) for one in found) if found else FITS


def _all_of(_node: JsonObject, value: Any, child: Child) -> Rule:
    schemas = _several("allOf", value, child)
    return lambda value, work, most: _gathered(
        (schema.broken_by(value, work, most) for schema in schemas), most
    )


def _any_of(_node: JsonObject, value: Any, child: Child) -> Rule:
    schemas = _several("anyOf", value, child)
    broken = (Broken(keyword="anyOf", expected=f"what fits at least one of {len(schemas)} schemas"),)

    def rule(value: Any, work: Work, _most: int) -> Findings:
        return FITS if any(schema.fits(value, work) for schema in schemas) else broken

    return rule


def _one_of(_node: JsonObject, value: Any, child: Child) -> Rule:
    schemas = _several("oneOf", value, child)
    broken = (Broken(keyword="oneOf", expected=f"what fits exactly one of {len(schemas)} schemas"),)

    def rule(value: Any, work: Work, _most: int) -> Findings:
        return FITS if sum(1 for schema in schemas if schema.fits(value, work)) == 1 else broken

    return rule


def _not(_node: JsonObject, value: Any, child: Child) -> Rule:
    schema = child(value)
    broken = (Broken(keyword="not", expected="what does not fit the schema under 'not'"),)
    return lambda value, work, _most: broken if schema.fits(value, work) else FITS


def _if(node: JsonObject, value: Any, child: Child) -> Rule:
    condition = child(value)
    then, otherwise = child(node.get("then", True)), child(node.get("else", True))

    def rule(value: Any, work: Work, most: int) -> Findings:
        branch = then if condition.fits(value, work) else otherwise
        return branch.broken_by(value, work, most)

    return rule


def _properties(_node: JsonObject, value: Any, child: Child) -> Rule:
    schemas = _named("properties", value, child)

    def rule(value: Any, work: Work, most: int) -> Findings:
        if not isinstance(value, dict):
            return FITS
        work.spend(len(schemas))
        return _gathered(
            (
                _below(schema.broken_by(value[name], work, most), name)
                for name, schema in schemas.items()
                if name in value
            ),
            most,
        )

    return rule


def _additional_properties(node: JsonObject, value: Any, child: Child) -> Rule:
    schema, named = child(value), frozenset(_object_at(node, "properties"))
    closed = (Broken(keyword="additionalProperties", expected="no such property"),) if value is False else ()

    def rule(value: Any, work: Work, most: int) -> Findings:
        if not isinstance(value, dict):
            return FITS
        work.spend(len(value))
        others = ((name, item) for name, item in value.items() if name not in named)
        return _gathered(
            (_below(closed or schema.broken_by(item, work, most), name) for name, item in others), most
        )

    return rule


def _property_names(_node: JsonObject, value: Any, child: Child) -> Rule:
    schema = child(value)
    broken = (Broken(keyword="propertyNames", expected="names that fit the schema of names"),)

    def rule(value: Any, work: Work, _most: int) -> Findings:
        if not isinstance(value, dict):
            return FITS
        return FITS if all(schema.fits(name, work) for name in value) else broken

    return rule


def _dependent_schemas(_node: JsonObject, value: Any, child: Child) -> Rule:
    schemas = _named("dependentSchemas", value, child)

    def rule(value: Any, work: Work, most: int) -> Findings:
        if not isinstance(value, dict):
            return FITS
        work.spend(len(schemas))
        return _gathered(
            (schema.broken_by(value, work, most) for name, schema in schemas.items() if name in value), most
        )

    return rule


def _prefix_items(_node: JsonObject, value: Any, child: Child) -> Rule:
    schemas = _several("prefixItems", value, child)

    def rule(value: Any, work: Work, most: int) -> Findings:
        if not isinstance(value, list):
            return FITS
        pairs = enumerate(zip(schemas, value, strict=False))
        return _gathered(
            (_below(schema.broken_by(item, work, most), at) for at, (schema, item) in pairs), most
        )

    return rule


def _items(node: JsonObject, value: Any, child: Child) -> Rule:
    schema, prefix = child(value), node.get("prefixItems", [])
    start = len(prefix) if isinstance(prefix, list) else 0

    def rule(value: Any, work: Work, most: int) -> Findings:
        if not isinstance(value, list):
            return FITS
        return _gathered(
            (_below(schema.broken_by(value[at], work, most), at) for at in range(start, len(value))), most
        )

    return rule


def _contains(node: JsonObject, value: Any, child: Child) -> Rule:
    schema = child(value)
    least = natural("minContains", node.get("minContains", 1))
    most_items = natural("maxContains", node["maxContains"]) if "maxContains" in node else None
    words = f"at least {least}" if most_items is None else f"{least} to {most_items}"
    broken = (Broken(keyword="contains", expected=f"{words} items that fit the schema under 'contains'"),)

    def rule(value: Any, work: Work, _most: int) -> Findings:
        if not isinstance(value, list):
            return FITS
        found = sum(1 for item in value if schema.fits(item, work))
        return FITS if least <= found and (most_items is None or found <= most_items) else broken

    return rule


def _object_at(node: JsonObject, keyword: str) -> JsonObject:
    value = node.get(keyword, {})
    return value if isinstance(value, dict) else {}


APPLICATORS: Final[dict[str, Callable[[JsonObject, Any, Child], Rule]]] = {
    "allOf": _all_of,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
    "if": _if,
    "properties": _properties,
    "additionalProperties": _additional_properties,
    "propertyNames": _property_names,
    "dependentSchemas": _dependent_schemas,
    "prefixItems": _prefix_items,
    "items": _items,
    "contains": _contains,
}

ONE_SCHEMA: Final = frozenset(
    {"not", "if", "then", "else", "additionalProperties", "propertyNames", "items", "contains"}
)
LISTED_SCHEMAS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
NAMED_SCHEMAS: Final = frozenset({"properties", "dependentSchemas", "$defs"})
"""Where in a schema other schemas stand."""


def with_schemas(node: Any, change: Callable[[Any], Any]) -> Any:
    """Return a schema with `change` applied to each schema that stands directly in it; all else is kept.

    What has another shape than the draft says is kept as well: who compiles the result refuses it.
    """
    if not isinstance(node, dict):
        return node
    changed = dict(node)
    for keyword, value in node.items():
        if keyword in ONE_SCHEMA:
            changed[keyword] = change(value)
        elif keyword in LISTED_SCHEMAS and isinstance(value, list):
            changed[keyword] = [change(one) for one in value]
        elif keyword in NAMED_SCHEMAS and isinstance(value, dict):
            changed[keyword] = {name: change(one) for name, one in value.items()}
    return changed
