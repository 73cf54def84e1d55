"""The OpenAPI 3.1 document, made of the routes and of the models that requests are checked with. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from control_plane.gateway.models import Model, Models, Plain
from control_plane.gateway.problems import CLIENT_CLOSED, CONTENT_TYPE, title_of
from control_plane.gateway.requests import RESUME_FIELD, RESUME_HEADER, RequestReader
from control_plane.gateway.routes import Kind, Route
from control_plane.gateway.uploads import UploadForm
from shared.rpc.credentials import MAX_TENANT_CHARS
from shared.rpc.status import HTTP_BY_STATUS

Json = dict[str, Any]

TENANT_HEADER: Final = "AF-Tenant"
_REFERENCE: Final = "#/components/schemas/{model}"

_PROBLEM: Final[Json] = {
    "type": "object",
    "description": "RFC 9457. `reason` is for programs; `hint` says what to do next.",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "reason": {"type": "string", "pattern": "^[A-Z][A-Z0-9_]*$"},
        "hint": {"type": "string"},
        "retryAfterSeconds": {"type": "number", "minimum": 0},
        "violations": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "in": {"enum": ["path", "query", "header", "body"]},
                    "pointer": {"type": "string"},
                    "detail": {"type": "string"},
                },
                "required": ["in", "pointer", "detail"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["type", "title", "status", "detail", "reason"],
    "additionalProperties": False,
}
_BY_HTTP: Final = (
    HTTPStatus.NOT_ACCEPTABLE,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
)


def document(
    readers: Sequence[RequestReader],
    forms: Mapping[str, UploadForm],
    models: Models,
    notes: Mapping[str, str],
) -> Json:
    """Return the document. `forms` are the uploads by RPC, `notes` what is said about each RPC."""
    schemas = _schemas(readers, forms, models)
    paths: dict[str, Json] = {}
    for reader in readers:
        route = reader.route
        operation = _operation(reader, forms.get(route.rpc), models, notes.get(route.rpc, ""))
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Agent Factory",
            "version": "v1",
            "description": "The control plane over HTTP. JSON is proto3 JSON of the gRPC contract: bytes are "
            "base64, enums are names, 64-bit numbers are text.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "security": [{"token": []}],
        "tags": [{"name": name} for name in dict.fromkeys(reader.route.service for reader in readers)],
        "paths": paths,
        "components": {
            "schemas": schemas | {"Problem": _PROBLEM},
            "responses": _problem_responses(),
            "parameters": {"tenant": _tenant()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def note(roles: Iterable[str], deadline: timedelta) -> str:
    """Return what is said about an RPC: who may call it, and how long it takes at most."""
    return f"Roles: {', '.join(sorted(roles))}. Ends within {deadline.total_seconds():g} s."


def _schemas(readers: Sequence[RequestReader], forms: Mapping[str, UploadForm], models: Models) -> Json:
    wanted: dict[str, Model] = {}
    for reader in readers:
        if reader.body_model is not None and reader.route.rpc not in forms:
            wanted[reader.body_model.__name__] = reader.body_model
        if reader.route.kind is not Kind.DOWNLOAD:
            output = models.output(reader.route.response)
            wanted[output.__name__] = output
    _, definitions = models_json_schema(
        [(model, "validation") for model in wanted.values()],
        ref_template=_REFERENCE,
        schema_generator=Plain,
    )
    schemas: Json = definitions["$defs"]
    return {name: _without_title(schema) for name, schema in sorted(schemas.items())}


def _without_title(schema: Json) -> Json:
    return {key: value for key, value in schema.items() if key != "title"}


def _operation(reader: RequestReader, form: UploadForm | None, models: Models, said: str) -> Json:
    route = reader.route
    operation: Json = {
        "operationId": route.name,
        "tags": [route.service],
        "summary": _spaced(route.name),
        "description": said,
        "parameters": [*_parameters(reader), {"$ref": "#/components/parameters/tenant"}],
        "responses": {
            str(success_status(route)): _success(route, models),
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in _statuses()},
        },
    }
    if form is not None:
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": form.to_openapi()}}
    elif reader.body_model is not None:
        operation["requestBody"] = {
            # None at all is read as {}.
            "required": any(field.is_required() for field in reader.body_model.model_fields.values()),
            "content": {"application/json": {"schema": _reference(reader.body_model)}},
        }
    return operation


_EVENT: Final[Json] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["message", "end", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer"},
    },
}
"""One server-sent event: an answer, the end, or the problem that ended the stream."""


def success_status(route: Route) -> int:
    """Return the status of an answer: 201 where something was made, 202 where it goes on."""
    if route.name.startswith("Submit"):
        return HTTPStatus.ACCEPTED
    if route.name.startswith(("Create", "Publish", "Upload")):
        return HTTPStatus.CREATED
    return HTTPStatus.OK


def _success(route: Route, models: Models) -> Json:
    if route.kind is Kind.DOWNLOAD:
        content: Json = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        return {"description": "The bytes.", "content": content}
    schema = _reference(models.output(route.response))
    if route.kind is Kind.EVENTS:
        text = "Server-sent events; the data of each `message` is this JSON: " + schema["$ref"]
        return {"description": text, "content": {"text/event-stream": {"schema": _EVENT}}}
    return {"description": "Done.", "content": {"application/json": {"schema": schema}}}


def _reference(model: Model) -> Json:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _parameters(reader: RequestReader) -> list[Json]:
    schema = reader.parameters_model.model_json_schema(schema_generator=Plain)
    found = [
        {
            "name": one.name,
            "in": one.location,
            "required": one.name in schema.get("required", ()),
            "schema": schema["properties"][one.name],
        }
        for one in reader.parameters
    ]
    if reader.route.kind is Kind.EVENTS:
        resume = next((one for one in found if one["name"] == RESUME_FIELD), None)
        if resume is not None:
            text = f"What a browser sends when it connects again: as `{RESUME_FIELD}`, and instead of it."
            found.append({**resume, "name": RESUME_HEADER, "in": "header", "description": text})
    return found


def _tenant() -> Json:
    return {
        "name": TENANT_HEADER,
        "in": "header",
        "required": False,
        "description": "Which tenant is meant, for callers of several.",
        "schema": {"type": "string", "pattern": "^[!-~]+$", "maxLength": MAX_TENANT_CHARS},
    }


def _statuses() -> list[int]:
    from_grpc = {status for status in HTTP_BY_STATUS.values() if status not in {HTTPStatus.OK, CLIENT_CLOSED}}
    return sorted(from_grpc | {int(status) for status in _BY_HTTP})


def _problem_responses() -> Json:
    content = {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": title_of(status), "content": content} for status in _statuses()}


def _spaced(name: str) -> str:
    return " ".join(re.findall("[A-Z][a-z0-9]*", name)).capitalize()
