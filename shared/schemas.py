"""JSON Schemas (draft 2020-12) that authors ship: checked when a template is read, applied to callers' JSON.

A schema never makes anybody fetch anything: references stay within it.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import jsonschema
import referencing
import referencing.exceptions

from shared.canonical import JsonObject, canonical_json, parse_canonical
from shared.errors import InvalidInputError, ManifestInvalidError

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MAX_SCHEMA_BYTES: Final = 128 * 1024
MAX_PATH_CHARS: Final = 200

_REFERENCES: Final = ("$ref", "$dynamicRef")


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSchema:
    """One checked schema."""

    canonical: bytes
    """Its canonical JSON."""
    _validator: jsonschema.Draft202012Validator = field(compare=False, repr=False)

    @classmethod
    def from_object(cls, document: JsonObject) -> "JsonSchema":
        """Return the schema in a decoded JSON object.

        Raises:
            ManifestInvalidError: It is no schema of draft 2020-12, names another dialect, refers to anything
                outside itself, or is larger than 128 KiB.
        """
        if document.get("$schema", DIALECT) != DIALECT:
            raise ManifestInvalidError(f"a schema names another dialect than {DIALECT}")
        try:
            canonical = canonical_json(document)
            jsonschema.Draft202012Validator.check_schema(document)
        except InvalidInputError as error:
            raise ManifestInvalidError(f"a schema is not JSON: {error}") from error
        except (jsonschema.SchemaError, RecursionError) as error:
            where = getattr(error, "json_path", "$")
            raise ManifestInvalidError(f"not a JSON Schema of draft 2020-12, at {where[:200]}") from error
        if len(canonical) > MAX_SCHEMA_BYTES:
            raise ManifestInvalidError(
                f"a schema has {len(canonical)} bytes, the bound is {MAX_SCHEMA_BYTES}"
            )
        _refuse_foreign_references(document)
        # An own, empty registry: the library's default one would fetch references over the network.
        validator = jsonschema.Draft202012Validator(document, registry=referencing.Registry())
        return cls(canonical=canonical, _validator=validator)

    def to_object(self) -> JsonObject:
        """Return the schema as decoded JSON."""
        return parse_canonical(self.canonical, max_bytes=MAX_SCHEMA_BYTES)

    def check(self, value: Any, what: str) -> None:
        """Return if, and only if, the decoded JSON `value` fits. CPU grows with value and schema: bound both.

        Raises:
            InvalidInputError: It does not; the message names the place and the rule, never the value.
        """
        try:
            error = next(self._validator.iter_errors(value), None)
        except (RecursionError, referencing.exceptions.Unresolvable) as problem:
            raise InvalidInputError(f"{what} cannot be checked against its schema") from problem
        if error is not None:
            where = error.json_path[:MAX_PATH_CHARS]
            raise InvalidInputError(f"{what} breaks rule {error.validator!r} of its schema at {where}")


def _refuse_foreign_references(node: Any) -> None:
    if isinstance(node, dict):
        for key in _REFERENCES:
            target = node.get(key, "#")
            if isinstance(target, str) and not target.startswith("#"):
                raise ManifestInvalidError(f"a schema refers to {target[:200]!r}: only '#…' is allowed")
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            _refuse_foreign_references(child)
