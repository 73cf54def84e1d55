"""From an HTTP request's parts to a message of the contract. Pure: bytes and text in, message or refusal out.

Every part is checked with the model that OpenAPI shows (control_plane/gateway/models.py), then read by
protobuf's own JSON reader. What the contract does not name is refused: an unknown parameter, a second value.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from pydantic import BaseModel, Field, ValidationError, create_model

from control_plane.gateway.fields import FREE_FORMS, OUTPUT_TEXTS, Type, header_type, rules_of, text_value
from control_plane.gateway.models import HEADER_FIELDS, REQUEST, Model, Models
from control_plane.gateway.problems import Violation, invalid
from control_plane.gateway.routes import SECOND_NAMES, TEXT_FORMS, Route
from shared.canonical import parse_strict
from shared.errors import FieldViolation, MalformedError

PAGE_FIELD: Final = "page"
"""Its fields stand in the query under their own names."""

RESUME_FIELD: Final = "after"
RESUME_HEADER: Final = "Last-Event-ID"
"""What a browser sends when it takes an event stream up again, and the field that it stands for."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A field of a request that travels outside the body."""

    name: str
    location: str
    """``path``, ``query`` or ``header``."""
    fields: tuple[FieldDescriptor, ...]
    """From the request's message down."""
    type: Type
    default: Any

    @property
    def field(self) -> FieldDescriptor:
        """The field itself."""
        return self.fields[-1]

    @property
    def key(self) -> str:
        """Its name in a model, and in no way outside."""
        return f"{self.location}_{'_'.join(str(field.number) for field in self.fields)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What came over HTTP."""

    path: Mapping[str, str]
    query: Sequence[tuple[str, str]]
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes = b""


class RequestReader:
    """Reads the requests of one route."""

    def __init__(self, route: Route, models: Models) -> None:
        self.route = route
        self.parameters = tuple(_parameters(route, models))
        definitions: dict[str, Any] = {one.key: (one.type, one.default) for one in self.parameters}
        self.parameters_model = create_model(f"{route.name}Parameters", __config__=REQUEST, **definitions)
        self.body_model = _body_model(route, models)
        self._message: type[Message] = GetMessageClass(route.request)
        self._by_name = {(one.location, one.name.lower()): one for one in self.parameters}

    def read(self, parts: Parts, *, max_bytes: int) -> Message:
        """Return the message that a request stands for.

        Raises:
            ProblemError: A part is not as OpenAPI says; the answer names each.
            MalformedError: The body is no JSON object, or has a key twice.
        """
        body = self._body(parts.body, max_bytes)
        found = self._given(parts)
        violations = [
            *_check(self.parameters_model, {one.name: value for one, value in found}, self._located),
            *(_check(self.body_model, body, _in_body) if self.body_model is not None else ()),
        ]
        if violations:
            raise invalid(violations)
        for parameter, value in found:
            _put(body, parameter, value)
        return parse_message(self._message(), body)

    def located(self, violations: Sequence[FieldViolation]) -> list[Violation]:
        """Return where in an HTTP request those fields stand that the control plane names."""
        return [self._located_field(one) for one in violations]

    def _located_field(self, violation: FieldViolation) -> Violation:
        name, slash, within = violation.field.partition("/")
        parameter = next((one for one in self.parameters if one.fields[0].name == name), None)
        if parameter is not None:
            return Violation(
                location=parameter.location, pointer=parameter.name, detail=violation.description
            )
        field = self.route.request.fields_by_name.get(name)
        shown = name if field is None else field.json_name
        where = "body" if self.route.has_body else "query"
        return Violation(location=where, pointer=f"/{shown}{slash}{within}", detail=violation.description)

    def _body(self, data: bytes, max_bytes: int) -> Json:
        if not data:
            return {}
        document = parse_strict(data, max_bytes=max_bytes)
        if document and self.body_model is None:
            raise invalid([Violation(location="body", pointer="", detail="this request has no body")])
        return document

    def _given(self, parts: Parts) -> list[tuple[Parameter, Any]]:
        given: dict[Parameter, list[str]] = {}
        for name, text in parts.path.items():
            given.setdefault(self._by_name["path", name.lower()], []).append(text)
        for name, text in parts.query:
            parameter = self._by_name.get(("query", name.lower()))
            if parameter is None or parameter.name != name:
                raise invalid([Violation(location="query", pointer=name[:64], detail="there is no such one")])
            given.setdefault(parameter, []).append(text)
        for parameter in self.parameters:
            if parameter.location == "header" and parameter.name.lower() in parts.headers:
                given[parameter] = [parts.headers[parameter.name.lower()]]
        return [(parameter, _value(parameter, texts)) for parameter, texts in given.items()]

    def _located(self, loc: tuple[int | str, ...]) -> tuple[str, str]:
        parameter = next((one for one in self.parameters if one.name == loc[0]), None)
        return (parameter.location if parameter else "query", "/".join(str(part) for part in loc))


def parse_message(message: Message, document: Json) -> Message:
    """Fill a message from proto3 JSON.

    Raises:
        MalformedError: It is none of this message.
    """
    try:
        return json_format.ParseDict(document, message)
    except json_format.ParseError as error:
        raise MalformedError(f"the request does not fit {message.DESCRIPTOR.name}: {error}") from error


def check_fields(model: Model, document: Json) -> None:
    """Return if a document is as its model says.

    Raises:
        ProblemError: It is not; the answer names the fields.
    """
    violations = _check(model, document, _in_body)
    if violations:
        raise invalid(violations)


def _check(model: Model, document: Json, located: Any) -> list[Violation]:
    try:
        model.model_validate(document)
    except ValidationError as error:
        return [
            Violation(location=where, pointer=pointer, detail=problem["msg"].removeprefix("Value error, "))
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
            for where, pointer in [located(problem["loc"])]
        ]
    return []


_TYPE_NAMES: Final = ("constrained-", "function-before[", "_")


def _in_body(loc: tuple[int | str, ...]) -> tuple[str, str]:
    # Where a value may be of two types, pydantic names the type too: no part of the document.
    return "body", "".join(f"/{part}" for part in loc if not str(part).startswith(_TYPE_NAMES))


def _value(parameter: Parameter, texts: list[str]) -> Any:
    if parameter.field.is_repeated:
        return [text_value(parameter.field, text) for text in texts]
    if len(texts) > 1:
        raise invalid(
            [Violation(location=parameter.location, pointer=parameter.name, detail="is given twice")]
        )
    return text_value(parameter.field, texts[0])


def _put(document: Json, parameter: Parameter, value: Any) -> None:
    for field in parameter.fields[:-1]:
        document = document.setdefault(field.json_name, {})
    if parameter.field.message_type is not None and parameter.field.message_type.full_name in TEXT_FORMS:
        name, at, version = value.partition("@")
        value = {"name": name, "version": version} if at else {"digest": value}
    document[parameter.field.json_name] = value


def _body_model(route: Route, models: Models) -> type[BaseModel] | None:
    if not route.has_body or route.request.full_name.endswith(".Empty"):
        return None
    elsewhere = {field.name for field in route.path_fields} | HEADER_FIELDS.keys()
    fields = [field for field in route.request.fields if field.name not in elsewhere]
    if not fields:
        return None
    if len(fields) == len(route.request.fields):
        return models.input(route.request)
    return models.request(route.request.name, route.request, fields)


def _parameters(route: Route, models: Models) -> Iterator[Parameter]:
    for field in route.path_fields:
        kind, _ = models.input_field(field, field.name)
        yield _parameter(str(field.json_name), "path", (field,), _text_form(field) or kind, ...)
    for fields in _header_fields(route.request):
        required = all(models.input_field(field, field.name)[1].is_required() for field in fields)
        kind = header_type(rules_of(fields[-1]))
        yield _parameter(HEADER_FIELDS[fields[-1].name], "header", fields, kind, ... if required else None)
    if not route.has_body:
        for fields in _leaves(route.request, set(route.path_fields)):
            yield _query_parameter(fields, models)


def _query_parameter(fields: tuple[FieldDescriptor, ...], models: Models) -> Parameter:
    shown = fields[1:] if fields[0].name == PAGE_FIELD and len(fields) > 1 else fields
    name = ".".join(str(field.json_name) for field in shown)
    kind, default = models.input_field(fields[-1], name)
    text = _text_form(fields[-1])
    return _parameter(name, "query", fields, text or kind, ... if default.is_required() else None)


def _parameter(
    name: str, location: str, fields: tuple[FieldDescriptor, ...], kind: Type, default: Any
) -> Parameter:
    return Parameter(
        name=name, location=location, fields=fields, type=kind, default=Field(default, alias=name)
    )


def _leaves(
    message: Descriptor, without: set[FieldDescriptor], above: tuple[FieldDescriptor, ...] = ()
) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Yield the fields of a message that are one word each, those of its messages included."""
    for field in message.fields:
        if field in without or field.name in HEADER_FIELDS or field.full_name in SECOND_NAMES:
            continue
        inner = field.message_type
        if inner is None or inner.full_name in {*TEXT_FORMS, *OUTPUT_TEXTS, *FREE_FORMS}:
            yield (*above, field)
        elif not field.is_repeated:
            yield from _leaves(inner, without, (*above, field))


def _header_fields(
    message: Descriptor, above: tuple[FieldDescriptor, ...] = ()
) -> Iterator[tuple[FieldDescriptor, ...]]:
    for field in message.fields:
        if field.name in HEADER_FIELDS:
            yield (*above, field)
        elif field.message_type is not None and not field.is_repeated and len(above) < 2:  # noqa: PLR2004
            yield from _header_fields(field.message_type, (*above, field))


def _text_form(field: FieldDescriptor) -> Type | None:
    message = field.message_type
    if message is None or message.full_name not in TEXT_FORMS:
        return None
    return Annotated[str, Field(pattern=TEXT_FORMS[message.full_name])]
