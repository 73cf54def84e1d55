"""JSON Schemas (draft 2020-12) that authors ship: checked when a template is read, applied to callers' JSON.

A schema and the JSON it judges both come from somebody who may mean harm. So schemas are a closed subset of
the draft without regular expressions, and reading one and applying it end within a bounded number of steps.
A keyword that is not known is refused, not ignored: a misspelt rule would check nothing. `format` is an
annotation, as in the draft, but for `secret-ref`.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from shared.canonical import JsonObject, canonical_json, parse_canonical
from shared.errors import FieldViolation, InvalidInputError, ManifestInvalidError
from shared.schema_applicators import APPLICATORS
from shared.schema_defaults import DEFINITIONS, Defaults, definition_name
from shared.schema_rules import (
    MAX_STEPS,
    SIMPLE_RULES,
    Broken,
    Findings,
    Rule,
    Schema,
    TooMuchWorkError,
    Work,
    natural,
    wrong_keyword,
)

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MAX_SCHEMA_BYTES: Final = 64 * 1024

MAX_SUBSCHEMAS: Final = 512
"""Schemas within one schema, definitions included."""

MAX_HEIGHT: Final = 48
"""Schemas within each other, references followed."""

MAX_VIOLATIONS: Final = 16
"""Places that one refusal names."""

_NOTHING_FITS: Final = (Broken(keyword="false", expected="nothing"),)

_TEXT_ANNOTATIONS: Final = frozenset(
    {"$schema", "$id", "$comment", "title", "description", "contentEncoding", "contentMediaType"}
)
_FLAG_ANNOTATIONS: Final = frozenset({"deprecated", "readOnly", "writeOnly"})
_ANY_ANNOTATIONS: Final = frozenset({"default", "examples"})
_ROOT_ONLY: Final = frozenset({"$schema", "$id", "$defs"})
_WITH_OTHERS: Final = frozenset({"then", "else", "minContains", "maxContains"})
"""Read together with `if` and `contains`."""

_REFUSED: Final = {
    "pattern": "regular expressions are not evaluated: use enum, const or lengths",
    "patternProperties": "regular expressions are not evaluated: use properties or propertyNames",
    "$dynamicRef": "references are static: use $ref",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSchema:
    """One checked schema."""

    canonical: bytes
    """Its canonical JSON."""
    _rules: Schema = field(compare=False, repr=False)
    _defaults: Defaults | None = field(compare=False, repr=False)
    """None: the schema has none."""

    @classmethod
    def from_object(cls, document: JsonObject) -> "JsonSchema":
        """Return the schema in a decoded JSON object.

        Raises:
            ManifestInvalidError: It is no schema of draft 2020-12, names another dialect, is larger than
                64 KiB, or says something that is not evaluated here: a regular expression, an unknown
                keyword, a reference to anything but its own definitions or in a circle, too many schemas.
        """
        if document.get("$schema", DIALECT) != DIALECT:
            raise ManifestInvalidError(f"a schema names another dialect than {DIALECT}")
        try:
            canonical = canonical_json(document)
            if len(canonical) > MAX_SCHEMA_BYTES:
                raise ManifestInvalidError(
                    f"a schema has {len(canonical)} bytes, the bound is {MAX_SCHEMA_BYTES}"
                )
            rules = _Compiler(document).root()
            # The word alone may be a property's name: then there is nothing to fill, only a walk for nothing.
            defaults = Defaults(document) if b'"default"' in canonical else None
            return cls(canonical=canonical, _rules=rules, _defaults=defaults)
        except InvalidInputError as error:
            raise ManifestInvalidError(f"a schema is not JSON: {error}") from error
        except (RecursionError, TooMuchWorkError) as error:
            raise ManifestInvalidError("a schema is nested too deep, or holds too large a value") from error

    def to_object(self) -> JsonObject:
        """Return the schema as decoded JSON."""
        return parse_canonical(self.canonical, max_bytes=MAX_SCHEMA_BYTES)

    def fill(self, value: Any, what: str) -> None:
        """Add to decoded JSON the properties that are not there and have a `default`; changes `value`.

        Raises:
            InvalidInputError: It takes too many steps.
        """
        if self._defaults is None:
            return
        try:
            self._defaults.fill(value, Work())
        except (RecursionError, TooMuchWorkError) as problem:
            raise _too_much(what) from problem

    def check(self, value: Any, what: str, *, secrets: Iterable[str] = ()) -> None:
        """Return if, and only if, the decoded JSON `value` fits. Ends within `MAX_STEPS`, whatever it is.

        A reference to a secret fits when it is to one of `secrets`.

        Raises:
            InvalidInputError: It does not fit; up to `MAX_VIOLATIONS` places are named by what was expected
                and what kind of value was found, never the value. Or checking it takes too many steps.
        """
        allowed = frozenset(secrets)
        try:
            found = self._rules.broken_by(value, Work(secrets=allowed), 1)
        except (RecursionError, TooMuchWorkError) as problem:
            raise _too_much(what) from problem
        if not found:
            return
        with suppress(RecursionError, TooMuchWorkError):  # one is named at least
            found = self._rules.broken_by(value, Work(secrets=allowed), MAX_VIOLATIONS)[:MAX_VIOLATIONS]
        raise _refusal(what, [(one.keyword, _violation(what, one, value)) for one in _different(found)])


def _too_much(what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{what} cannot be checked against its schema within {MAX_STEPS} steps",
        hint="make it smaller, or give its template a simpler schema",
    )


def _different(found: Findings) -> Findings:
    """Return one finding for each place and keyword: two schemas may say the same of one value."""
    return tuple({(one.path, one.keyword): one for one in reversed(found)}.values())[::-1]


def _violation(what: str, broken: Broken, value: Any) -> FieldViolation:
    return FieldViolation(
        field=f"{what}{broken.pointer}",
        description=f"expected {broken.expected}, got {_kind_at(value, broken.path)}",
    )


def _refusal(what: str, found: list[tuple[str, FieldViolation]]) -> InvalidInputError:
    (keyword, first), others = found[0], len(found) - 1
    more = f"; {others} more of its fields {'is' if others == 1 else 'are'} wrong" if others else ""
    return InvalidInputError(
        f"{what} breaks rule {keyword!r} of its schema at {first.field.removeprefix(what) or '/'}:"
        f" {first.description}{more}",
        violations=[violation for _, violation in found],
    )


def _kind_at(value: Any, path: tuple[str | int, ...]) -> str:
    """Return what kind of value stands at a place; nothing of the value itself."""
    for key in reversed(path):
        if isinstance(value, dict) and key not in value:
            return "nothing"
        value = value[key]
    if isinstance(value, bool) or value is None:
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "integer" if isinstance(value, int) else "number"
    if isinstance(value, str):
        return f"string of {len(value)} characters"
    return f"array of {len(value)} items" if isinstance(value, list) else f"object of {len(value)} properties"


class _Compiler:
    """Turns one document into rules. Lives only while it does."""

    def __init__(self, document: JsonObject) -> None:
        self._document = document
        self._definitions = document.get("$defs", {})
        if not isinstance(self._definitions, dict):
            raise wrong_keyword("$defs", "an object")
        self._ready: dict[str, Schema] = {}
        self._under_way: set[str] = set()
        self._subschemas = 0

    def root(self) -> Schema:
        schema = self._schema(self._document, is_root=True)
        for name in self._definitions:
            self._definition(name)  # an unused one is refused like a used one
        return schema

    def _definition(self, name: str) -> Schema:
        if name not in self._ready:
            if name not in self._definitions:
                raise ManifestInvalidError(f"a schema refers to {name[:64]!r}, which is not in its '$defs'")
            if name in self._under_way:
                raise ManifestInvalidError(f"a schema's definition {name[:64]!r} refers to itself")
            self._under_way.add(name)
            self._ready[name] = self._schema(self._definitions[name])
            self._under_way.discard(name)
        return self._ready[name]

    def _schema(self, node: Any, *, is_root: bool = False) -> Schema:
        self._subschemas += 1
        if self._subschemas > MAX_SUBSCHEMAS:
            raise ManifestInvalidError(f"a schema holds more than {MAX_SUBSCHEMAS} schemas")
        if node is True:
            return Schema((), 1)
        if node is False:
            return Schema((lambda _value, _work, _most: _NOTHING_FITS,), 1)
        if not isinstance(node, dict):
            raise ManifestInvalidError("a schema is neither an object nor true nor false")
        rules: list[Rule] = []
        children: list[Schema] = []
        for keyword, value in node.items():
            if keyword in _ROOT_ONLY and not is_root:
                raise ManifestInvalidError(f"keyword {keyword!r} is allowed at a schema's root only")
            rule = self._rule(node, keyword, value, children)
            if rule is not None:
                rules.append(rule)
        height = 1 + max((child.height for child in children), default=0)
        if height > MAX_HEIGHT:
            raise ManifestInvalidError(f"a schema nests more than {MAX_HEIGHT} schemas")
        return Schema(tuple(rules), height)

    def _rule(self, node: JsonObject, keyword: str, value: Any, children: list[Schema]) -> Rule | None:
        def child(document: Any) -> Schema:
            schema = self._schema(document)
            children.append(schema)
            return schema

        if keyword == "$defs":
            return None  # `_definition` reads them
        if keyword == "$ref":
            return self._reference(value, children)
        if (make := SIMPLE_RULES.get(keyword)) is not None:
            return make(keyword, value)
        if keyword in _WITH_OTHERS:
            # Without effect, but it has to be right.
            if keyword in {"minContains", "maxContains"}:
                natural(keyword, value)
            elif "if" not in node:
                child(value)
            return None
        if (build := APPLICATORS.get(keyword)) is not None:
            return build(node, value, child)
        if _is_annotation(keyword, value):
            return None
        reason = _REFUSED.get(keyword, "it is not one that is known here")
        raise ManifestInvalidError(f"keyword {keyword[:64]!r} of a schema is refused: {reason}")

    def _reference(self, target: Any, children: list[Schema]) -> Rule:
        if not isinstance(target, str) or not target.startswith(DEFINITIONS):
            raise ManifestInvalidError(
                f"a schema refers to {str(target)[:200]!r}: only '#/$defs/…' is allowed"
            )
        schema = self._definition(definition_name(target))
        children.append(schema)
        return schema.broken_by


def _is_annotation(keyword: str, value: Any) -> bool:
    if keyword in _TEXT_ANNOTATIONS:
        if not isinstance(value, str):
            raise wrong_keyword(keyword, "a string")
    elif keyword in _FLAG_ANNOTATIONS:
        if not isinstance(value, bool):
            raise wrong_keyword(keyword, "true or false")
    elif keyword not in _ANY_ANNOTATIONS:
        return False
    return True
