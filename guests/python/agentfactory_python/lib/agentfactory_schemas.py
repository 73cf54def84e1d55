"""JSON Schemas of what `run` is annotated with, and the way from JSON to dataclasses and back."""

import dataclasses
import datetime as dt
import decimal
import enum
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
PLAIN: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    dict: {"type": "object"},
    list: {"type": "array"},
}
MAX_DEPTH = 16


def of(function: Callable[..., Any]) -> tuple[dict[str, Schema], Callable[[Any], Any]]:
    """Return the schemas of input and output where their types say something, and what makes the input."""
    hints = typing.get_type_hints(function, include_extras=True)
    names = list(inspect.signature(function).parameters)
    taken = hints.get(names[0]) if names else None
    schemas = {}
    for which, kind in (("input", taken), ("output", hints.get("return"))):
        if kind is not None and _says_something(kind):
            schemas[which] = schema(kind)
    return schemas, (lambda value: made(taken, value))


def _says_something(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or typing.is_typeddict(kind) or typing.get_origin(kind) is list


def schema(kind: Any, depth: int = 0) -> Schema:  # noqa: C901, PLR0911 - one line for each kind of type
    """Return the schema of a type; of one that JSON has no word for the schema that holds everything."""
    if depth > MAX_DEPTH:
        raise TypeError(f"types are nested deeper than {MAX_DEPTH}")
    if kind in PLAIN:
        return dict(PLAIN[kind])
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {typing.Annotated, typing.Required, typing.NotRequired}:
        return schema(arguments[0], depth + 1)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in {typing.Union, types.UnionType}:
        return {"anyOf": [schema(each, depth + 1) for each in arguments]}
    if origin in {list, tuple, set, frozenset} and arguments:
        return {"type": "array", "items": schema(arguments[0], depth + 1)}
    if origin is dict and arguments:
        return {"type": "object", "additionalProperties": schema(arguments[1], depth + 1)}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"enum": [each.value for each in kind]}
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return _object(hints, sorted(kind.__required_keys__), depth)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return _object(
            {field.name: hints[field.name] for field in dataclasses.fields(kind)},
            [field.name for field in dataclasses.fields(kind) if _is_required(field)],
            depth,
        )
    return {}


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _object(hints: dict[str, Any], required: list[str], depth: int) -> Schema:
    made_of = {name: schema(kind, depth + 1) for name, kind in hints.items()}
    return {"type": "object", "properties": made_of, "required": required}


def made(kind: Any, value: Any) -> Any:
    """Return JSON as the type that is wanted, dataclasses made all the way down; else as it is."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list and isinstance(value, list):
        return [made(arguments[0], each) for each in value]
    if origin in {typing.Union, types.UnionType}:
        wanted = [each for each in arguments if dataclasses.is_dataclass(each)]
        return made(wanted[0], value) if wanted and isinstance(value, dict) else value
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        names = {field.name for field in dataclasses.fields(kind)}
        return kind(**{name: made(hints[name], each) for name, each in value.items() if name in names})
    return value


def plain(value: Any) -> Any:
    """Return what JSON has for a value that it does not know: `json.dumps` asks.

    Raises:
        TypeError: There is nothing; an answer is never guessed.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"the result holds a {type(value).__name__}, for which JSON has nothing")
