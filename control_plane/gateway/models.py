"""Messages of the contract as pydantic models: what OpenAPI shows, and what a request's JSON is checked with.

A request is read strictly: JSON names only, nothing unknown, no null, no number as text (but for 64 bits).
Answers are only described, never checked.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeAlias

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from control_plane.gateway.fields import (
    FREE_FORMS,
    OUTPUT_TEXTS,
    Rules,
    Type,
    duration_type,
    input_type,
    output_type,
    rules_of,
    timestamp_type,
)

Model: TypeAlias = type[BaseModel]
Json: TypeAlias = dict[str, Any]

HEADER_FIELDS: Final[Mapping[str, str]] = {"request_id": "Idempotency-Key", "traceparent": "traceparent"}
"""Fields of requests that HTTP has a header for: there and nowhere else."""

REQUEST: Final = ConfigDict(extra="forbid", strict=True)
_ANSWER: Final = ConfigDict()


class _NamedVersion(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, title="ByVersion")

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9-]{0,62}$")]
    version: Annotated[str, Field(pattern="^[0-9A-Za-z.+-]{1,128}$")]


class _Digest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, title="ByDigest")

    digest: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]


CHOICES: Final[Mapping[str, Type]] = {"agentfactory.v1.TemplateRef": _NamedVersion | _Digest}
"""Messages of which one set of fields or another is given, which the contract's rules do not say."""


class Plain(GenerateJsonSchema):
    """JSON Schema without the titles and nulls that say nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the library's signature
        """Return that a property has no title: its name says the same."""
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Return the type alone: a field that is absent is absent, not null."""
        return self.generate_inner(schema["schema"])


class Models:
    """One model for each message and direction, made when it is first asked for."""

    def __init__(self) -> None:
        self._inputs: dict[str, Model] = {}
        self._outputs: dict[str, Model] = {}

    def input(self, message: Descriptor) -> Model:
        """Return the model of a message within a request."""
        known = self._inputs.get(message.full_name)
        if known is None:
            fields = [field for field in message.fields if field.name not in HEADER_FIELDS]
            name = message.name if message.name.endswith("Request") else f"{message.name}Input"
            known = self._inputs[message.full_name] = self.request(name, message, fields)
        return known

    def request(self, name: str, message: Descriptor, fields: list[FieldDescriptor]) -> Model:
        """Return a model of some fields of a request message."""
        definitions: dict[str, Any] = {
            f"f{field.number}": self.input_field(field, str(field.json_name)) for field in fields
        }
        return create_model(
            name,
            __config__=ConfigDict(**REQUEST, json_schema_extra=_oneof_schema(message)),
            __validators__=_oneof_checks(message),
            **definitions,
        )

    def input_field(self, field: FieldDescriptor, name: str) -> tuple[Type, Any]:
        """Return type and default of a field under a name in a request."""
        rules = rules_of(field)
        kind = self._container(field, rules)
        return (
            (kind, Field(alias=name)) if _is_required(field, rules, kind) else (kind, Field(None, alias=name))
        )

    def output(self, message: Descriptor) -> Model:
        """Return the model of a message within an answer."""
        known = self._outputs.get(message.full_name)
        if known is None:
            fields: dict[str, Any] = {}
            for field in message.fields:
                kind = self._output_container(field)
                fields[f"f{field.number}"] = (
                    (kind, Field(None, alias=str(field.json_name)))
                    if field.has_presence
                    else (kind, Field(alias=str(field.json_name)))
                )
            known = create_model(message.name, __config__=_ANSWER, **fields)
            self._outputs[message.full_name] = known
        return known

    def _container(self, field: FieldDescriptor, rules: Rules) -> Type:
        if not field.is_repeated:
            return self._input_value(field, rules)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            pairs = rules.map
            return Annotated[
                dict[str, self._input_value(value, pairs.values)],  # type: ignore[misc]  # made at run time
                Field(min_length=pairs.min_pairs or None, max_length=pairs.max_pairs or None),
            ]
        named = rules.repeated
        return Annotated[
            list[self._input_value(field, named.items)],  # type: ignore[misc]
            Field(
                min_length=named.min_items or None,
                max_length=named.max_items if named.HasField("max_items") else None,
            ),
        ]

    def _input_value(self, field: FieldDescriptor, rules: Rules) -> Type:
        message = field.message_type
        if message is None:
            return input_type(field, rules)
        if message.full_name == "google.protobuf.Timestamp":
            return timestamp_type()
        if message.full_name == "google.protobuf.Duration":
            return duration_type(rules)
        for table in (CHOICES, FREE_FORMS):
            if message.full_name in table:
                return table[message.full_name]
        return self.input(message)

    def _output_container(self, field: FieldDescriptor) -> Type:
        if not field.is_repeated:
            return self._output_value(field)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return dict[str, self._output_value(field.message_type.fields_by_name["value"])]  # type: ignore[misc]
        return list[self._output_value(field)]  # type: ignore[misc]

    def _output_value(self, field: FieldDescriptor) -> Type:
        message = field.message_type
        if message is None:
            return output_type(field)
        for table in (OUTPUT_TEXTS, FREE_FORMS):
            if message.full_name in table:
                return table[message.full_name]
        return self.output(message)


def _is_required(field: FieldDescriptor, rules: Rules, kind: Type) -> bool:
    """Whether a request without the field is refused: its rules say so, or refuse its zero value."""
    if rules.required:
        return True
    if field.has_presence or rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE:
        return False
    zero: Any = field.default_value
    if field.is_repeated:
        zero = {} if field.message_type is not None and field.message_type.GetOptions().map_entry else []
    elif field.enum_type is not None:
        zero = field.enum_type.values_by_number[zero].name
    elif isinstance(zero, bytes):
        zero = ""
    try:
        TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(zero)
    except ValidationError:
        return True
    return False


def _oneofs(message: Descriptor) -> list[OneofDescriptor]:
    # A field that is "optional" is a oneof of its own to protobuf, and none to a reader.
    return [one for one in message.oneofs if not (len(one.fields) == 1 and one.name.startswith("_"))]


def _must_be_set(oneof: OneofDescriptor) -> bool:
    return bool(oneof.GetOptions().Extensions[validate_pb2.oneof].required)


def _oneof_schema(message: Descriptor) -> Callable[[Json], None]:
    """Return what splits a message's schema into one for each field of its oneofs, and one without any.

    `not` would say it in a line, and most tools that make code or data of a schema do not read it.
    """

    def split(schema: Json) -> None:
        for oneof in _oneofs(message):
            names = [str(field.json_name) for field in oneof.fields]
            choices = [[name] for name in names] if _must_be_set(oneof) else [[], *([name] for name in names)]
            whole = dict(schema)
            schema.clear()
            schema["oneOf"] = [_with(whole, chosen, names) for chosen in choices]

    return split


def _with(schema: Json, chosen: list[str], names: list[str]) -> Json:
    if "oneOf" in schema:
        return {"oneOf": [_with(each, chosen, names) for each in schema["oneOf"]]}
    left_out = set(names) - set(chosen)
    properties = {name: each for name, each in schema["properties"].items() if name not in left_out}
    return {**schema, "properties": properties, "required": [*schema.get("required", ()), *chosen]}


def _oneof_checks(message: Descriptor) -> dict[str, Any]:
    oneofs = _oneofs(message)

    def check(self: BaseModel) -> BaseModel:
        for oneof in oneofs:
            given = [str(f.json_name) for f in oneof.fields if f"f{f.number}" in self.model_fields_set]
            if len(given) > 1:
                raise ValueError(f"at most one of {', '.join(given)}")
            if not given and _must_be_set(oneof):
                raise ValueError("one of " + ", ".join(str(f.json_name) for f in oneof.fields))
        return self

    return {"oneofs": model_validator(mode="after")(check)} if oneofs else {}
