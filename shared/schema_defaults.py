"""Fills in what a schema's `default` says of properties that are not there. Judges nothing: that comes later.

Followed are the places that apply to a value whatever it is: `properties`, `items`, `allOf` and `$ref`. Of
two defaults for one property the later one in an `allOf` counts: who extends a schema may choose another.
"""

from copy import deepcopy
from typing import Any, Final

from shared.canonical import JsonObject
from shared.schema_rules import Work, count_steps

DEFINITIONS: Final = "#/$defs/"

_NONE: Final = object()


class Defaults:
    """The defaults of one checked schema, whose references lead to its own definitions and in no circle."""

    def __init__(self, document: JsonObject) -> None:
        self._document = document
        self._definitions: dict[str, Any] = document.get("$defs", {})

    def fill(self, value: Any, work: Work) -> None:
        """Change `value`, decoded JSON that nobody else holds.

        Raises:
            TooMuchWorkError: The work is used up.
        """
        self._fill(self._document, value, work)

    def _fill(self, node: Any, value: Any, work: Work) -> None:
        work.spend(1)
        if not isinstance(node, dict):
            return
        if isinstance(value, dict):
            for name, schema in node.get("properties", {}).items():
                self._fill_property(name, schema, value, work)
        if isinstance(value, list) and "items" in node:
            for item in value[len(node.get("prefixItems", [])) :]:
                self._fill(node["items"], item, work)
        for schema in reversed(node.get("allOf", [])):
            self._fill(schema, value, work)
        if "$ref" in node:
            self._fill(self._referred(node["$ref"]), value, work)

    def _fill_property(self, name: str, schema: Any, value: dict[str, Any], work: Work) -> None:
        work.spend(1)
        if name not in value:
            default = self._default_of(schema, work)
            if default is _NONE:
                return
            work.spend(count_steps(default, work.left))
            value[name] = deepcopy(default)
        self._fill(schema, value[name], work)

    def _default_of(self, schema: Any, work: Work) -> Any:
        while isinstance(schema, dict):
            work.spend(1)
            if "default" in schema:
                return schema["default"]
            if "$ref" not in schema:
                break
            schema = self._referred(schema["$ref"])
        return _NONE

    def _referred(self, target: str) -> Any:
        return self._definitions[definition_name(target)]


def definition_name(target: str) -> str:
    """Return the definition that a reference of the form ``#/$defs/NAME`` leads to."""
    return target.removeprefix(DEFINITIONS).replace("~1", "/").replace("~0", "~")
