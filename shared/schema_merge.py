"""One schema that means two: what fits it fits both. How a template's schema narrows that of its parent.

The form is fixed, so that whoever has the parent's schema can tell by looking that a schema means it and one
more: an `allOf` that begins with the parent's, definitions of both under prefixes.
"""

from typing import Any, Final

from shared.canonical import JsonObject, canonical_json
from shared.schema_applicators import with_schemas
from shared.schema_defaults import DEFINITIONS
from shared.schemas import JsonSchema

_PARENT: Final = "parent."
_OWN: Final = "own."
_ROOT_WORDS: Final = frozenset({"$schema", "$id", "$defs"})


def conjoin(parent: JsonSchema, own: JsonSchema) -> JsonSchema:
    """Return the schema that a value fits exactly when it fits both; `parent` itself when they are the same.

    Raises:
        ManifestInvalidError: Together they are beyond a bound of schemas.
    """
    if parent == own:
        return parent
    first, second = _part(parent.to_object(), _PARENT), _part(own.to_object(), _OWN)
    together: JsonObject = {"allOf": [first[0], second[0]]}
    if definitions := first[1] | second[1]:
        together["$defs"] = definitions
    return JsonSchema.from_object(together)


def means(schema: JsonSchema, parent: JsonSchema) -> bool:
    """Whether everything that fits `schema` fits `parent`, by its form: it is the parent's, or `conjoin`s it.

    False does not say that there is a value that fits one only.
    """
    if schema == parent:
        return True
    document = schema.to_object()
    parts, definitions = document.get("allOf", []), document.get("$defs", {})
    root, needed = _part(parent.to_object(), _PARENT)
    given = {name: one for name, one in definitions.items() if name.startswith(_PARENT)}
    return bool(parts) and _same(parts[0], root) and _same(given, needed)


def closed_names(schema: JsonSchema) -> frozenset[str] | None:
    """Return the only properties that an object may have at the top of a schema; None: any others too."""
    document = schema.to_object()
    allowed: frozenset[str] | None = None
    waiting = [document]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict):
            continue
        if node.get("additionalProperties") is False:
            named = frozenset(node.get("properties", {}))
            allowed = named if allowed is None else allowed & named
        waiting.extend(node.get("allOf", []))
    return allowed


def _part(document: JsonObject, prefix: str) -> tuple[Any, dict[str, Any]]:
    """Return a schema without what only a root may have, and its definitions, all under a prefix."""

    def renamed(node: Any) -> Any:
        changed = with_schemas(node, renamed)
        if isinstance(changed, dict) and "$ref" in changed:
            name = changed["$ref"].removeprefix(DEFINITIONS)
            changed["$ref"] = f"{DEFINITIONS}{prefix}{name}"
        return changed

    root = renamed({word: value for word, value in document.items() if word not in _ROOT_WORDS})
    definitions = document.get("$defs", {})
    return root, {f"{prefix}{name}": renamed(node) for name, node in definitions.items()}


def _same(one: Any, other: Any) -> bool:
    return canonical_json({"": one}) == canonical_json({"": other})
