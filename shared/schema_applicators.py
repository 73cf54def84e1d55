"""Rules of JSON Schema (Core, draft 2020-12) that apply other schemas to a value or to its parts. Pure."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from shared.canonical import JsonObject
from shared.schema_rules import Broken, Rule, Schema, Work, natural, wrong_keyword

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


def _passing(schemas: Iterable[Schema], value: Any, work: Work) -> Iterable[Schema]:
    return (schema for schema in schemas if schema.broken_by(value, work) is None)


def _all_of(_node: JsonObject, value: Any, child: Child) -> Rule:
    schemas = _several("allOf", value, child)

    def rule(value: Any, work: Work) -> Broken | None:
        broken = (schema.broken_by(value, work) for schema in schemas)
        return next((one for one in broken if one is not None), None)

    return rule


def _any_of(_node: JsonObject, value: Any, child: Child) -> Rule:
    schemas = _several("anyOf", value, child)

    def rule(value: Any, work: Work) -> Broken | None:
        fits = next(iter(_passing(schemas, value, work)), None) is not None
        return None if fits else Broken(keyword="anyOf")

    return rule


def _one_of(_node: JsonObject, value: Any, child: Child) -> Rule:
    schemas = _several("oneOf", value, child)

    def rule(value: Any, work: Work) -> Broken | None:
        return None if sum(1 for _ in _passing(schemas, value, work)) == 1 else Broken(keyword="oneOf")

    return rule


def _not(_node: JsonObject, value: Any, child: Child) -> Rule:
    schema = child(value)
    return lambda value, work: Broken(keyword="not") if schema.broken_by(value, work) is None else None


def _if(node: JsonObject, value: Any, child: Child) -> Rule:
    condition = child(value)
    then, otherwise = child(node.get("then", True)), child(node.get("else", True))

    def rule(value: Any, work: Work) -> Broken | None:
        branch = then if condition.broken_by(value, work) is None else otherwise
        return branch.broken_by(value, work)

    return rule


def _properties(_node: JsonObject, value: Any, child: Child) -> Rule:
    schemas = _named("properties", value, child)

    def rule(value: Any, work: Work) -> Broken | None:
        if not isinstance(value, dict):
            return None
        work.spend(len(schemas))
        for name, schema in schemas.items():
            if name in value and (broken := schema.broken_by(value[name], work)) is not None:
                return broken.below(name)
        return None

    return rule


def _additional_properties(node: JsonObject, value: Any, child: Child) -> Rule:
    schema, named = child(value), frozenset(_object_at(node, "properties"))
    closed = value is False

    def rule(value: Any, work: Work) -> Broken | None:
        if not isinstance(value, dict):
            return None
        work.spend(len(value))
        for name, item in value.items():
            if name not in named and (broken := schema.broken_by(item, work)) is not None:
                return Broken(keyword="additionalProperties") if closed else broken.below(name)
        return None

    return rule


def _property_names(_node: JsonObject, value: Any, child: Child) -> Rule:
    schema = child(value)

    def rule(value: Any, work: Work) -> Broken | None:
        if not isinstance(value, dict):
            return None
        fits = all(schema.broken_by(name, work) is None for name in value)
        return None if fits else Broken(keyword="propertyNames")

    return rule


def _dependent_schemas(_node: JsonObject, value: Any, child: Child) -> Rule:
    schemas = _named("dependentSchemas", value, child)

    def rule(value: Any, work: Work) -> Broken | None:
        if not isinstance(value, dict):
            return None
        work.spend(len(schemas))
        broken = (schema.broken_by(value, work) for name, schema in schemas.items() if name in value)
        return next((one for one in broken if one is not None), None)

    return rule


def _prefix_items(_node: JsonObject, value: Any, child: Child) -> Rule:
    schemas = _several("prefixItems", value, child)

    def rule(value: Any, work: Work) -> Broken | None:
        if not isinstance(value, list):
            return None
        for at, (schema, item) in enumerate(zip(schemas, value, strict=False)):
            if (broken := schema.broken_by(item, work)) is not None:
                return broken.below(at)
        return None

    return rule


def _items(node: JsonObject, value: Any, child: Child) -> Rule:
    schema, prefix = child(value), node.get("prefixItems", [])
    start = len(prefix) if isinstance(prefix, list) else 0

    def rule(value: Any, work: Work) -> Broken | None:
        if not isinstance(value, list):
            return None
        for at in range(start, len(value)):
            if (broken := schema.broken_by(value[at], work)) is not None:
                return broken.below(at)
        return None

    return rule


def _contains(node: JsonObject, value: Any, child: Child) -> Rule:
    schema = child(value)
    least = natural("minContains", node.get("minContains", 1))
    most = natural("maxContains", node["maxContains"]) if "maxContains" in node else None

    def rule(value: Any, work: Work) -> Broken | None:
        if not isinstance(value, list):
            return None
        found = sum(1 for item in value if schema.broken_by(item, work) is None)
        return None if least <= found and (most is None or found <= most) else Broken(keyword="contains")

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
