"""From the contract's descriptors to routes: which RPC answers which method and path. Pure, no HTTP, no gRPC.

The rule, for an RPC named by a verb and a noun:

* Get, List, Watch, Download, Export, Check read: GET. Update is PATCH, Delete is DELETE, all else POST.
* A request that names its resource (`agent` by `name`, `execution` by `execution_id` …) has it in the path.
* Create, Submit, Publish and Upload make something: POST on the collection.
* Any other verb is written behind the path: ``POST /v1/executions/{executionId}:cancel``.

What the rule says badly stands in `EXCEPTIONS`.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import agentfactory.v1
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

PREFIX: Final = "/v1"
NOT_FOR_CALLERS: Final = frozenset({"agentfactory.v1.NodeService", "agentfactory.v1.CompileService"})
"""Services of nodes: they come with a certificate, which a gateway cannot forward."""

EXCEPTIONS: Final[Mapping[str, str]] = {
    "DownloadBody": "/executions/{execution_id}/bodies/{kind}",
    "ExportEvidence": "/evidence:export",
    "CheckEvidence": "/evidence:check",
}
"""RPC to path, where the rule would give a worse one."""

TEXT_FORMS: Final[Mapping[str, str]] = {
    "agentfactory.v1.TemplateRef": r"^([a-z][a-z0-9-]{0,62}@[0-9A-Za-z.+-]{1,128}|sha256:[0-9a-f]{64})$",
}
"""Messages that one word of a path names, and how it is written: ``name@version``, or a digest."""

SECOND_NAMES: Final = frozenset({"agentfactory.v1.GetReceiptRequest.execution_id"})
"""Fields that name what the path names already; REST has one way."""

_READING: Final = frozenset({"get", "list", "watch", "download", "export", "check"})
_MAKING: Final = frozenset({"create", "submit", "publish", "upload"})
_METHODS: Final = {"update": "PATCH", "delete": "DELETE"}
_PLAIN: Final = _MAKING | _METHODS.keys() | {"get", "list"}
"""Verbs that the HTTP method says already."""

_WORDS = re.compile(r"[A-Z][a-z0-9]*")
_PARAMETER = re.compile(r"{(\w+)}")


class Kind(StrEnum):
    """How messages become HTTP."""

    UNARY = "unary"
    EVENTS = "events"
    """A stream of messages, as server-sent events."""
    DOWNLOAD = "download"
    """A stream of bytes."""
    UPLOAD = "upload"
    """A header message and the bytes behind it, as multipart/form-data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One RPC as HTTP."""

    rpc: str
    """``/package.Service/Method``."""
    service: str
    name: str
    method: str
    path: str
    """With ``{json names}`` of the fields that stand in it."""
    kind: Kind
    request: Descriptor
    response: Descriptor
    path_fields: tuple[FieldDescriptor, ...]

    @property
    def has_body(self) -> bool:
        """Whether fields that are not in the path travel in a JSON body; otherwise in the query."""
        return self.method in {"POST", "PATCH"}


def caller_services(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the services that callers use."""
    return tuple(name for name in names if name not in NOT_FOR_CALLERS)


def routes_of(services: Iterable[str]) -> tuple[Route, ...]:
    """Return a route for every RPC of the services that HTTP can carry: all but bidirectional streams.

    Raises:
        ValueError: Two RPCs would have one route, or a stream has a form that is not known here.
    """
    for module in pkgutil.iter_modules(agentfactory.v1.__path__):
        if module.name.endswith("_pb2"):
            importlib.import_module(f"agentfactory.v1.{module.name}")
    pool = descriptor_pool.Default()
    found: dict[tuple[str, str], Route] = {}
    for service in services:
        for rpc in pool.FindServiceByName(service).methods:
            if rpc.client_streaming and rpc.server_streaming:
                continue
            route = _route(rpc)
            other = found.setdefault((route.method, _PARAMETER.sub("{}", route.path)), route)
            if other is not route:
                raise ValueError(f"{other.rpc} and {route.rpc} have one route: {route.method} {route.path}")
    return tuple(found.values())


def chunk_field(message: Descriptor) -> FieldDescriptor | None:
    """Return the one bytes field that a message consists of, or None."""
    fields = message.fields
    return fields[0] if len(fields) == 1 and fields[0].type == FieldDescriptor.TYPE_BYTES else None


def _route(rpc: MethodDescriptor) -> Route:
    service = rpc.containing_service
    verb, noun = _verb_and_noun(rpc.name, service.name)
    path, fields = _path(rpc, verb, noun)
    return Route(
        rpc=f"/{service.full_name}/{rpc.name}",
        service=service.name,
        name=rpc.name,
        method="GET" if verb in _READING else _METHODS.get(verb, "POST"),
        path=PREFIX + path,
        kind=_kind(rpc),
        request=rpc.input_type,
        response=rpc.output_type,
        path_fields=fields,
    )


def _kind(rpc: MethodDescriptor) -> Kind:
    if rpc.client_streaming:
        upload_parts(rpc.input_type)
        return Kind.UPLOAD
    if rpc.server_streaming:
        return Kind.EVENTS if chunk_field(rpc.output_type) is None else Kind.DOWNLOAD
    return Kind.UNARY


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadParts:
    """The two kinds of messages of a client stream."""

    header: FieldDescriptor
    chunk: FieldDescriptor
    inner: FieldDescriptor | None
    """The bytes within the chunk's message; None: the chunk is bytes itself."""


def upload_parts(message: Descriptor) -> UploadParts:
    """Return how a client stream is made up.

    Raises:
        ValueError: It is not one header message and then chunks of bytes.
    """
    fields = message.fields
    if len(fields) == 2 and fields[0].message_type is not None:  # noqa: PLR2004 - header, chunk
        header, chunk = fields
        if chunk.type == FieldDescriptor.TYPE_BYTES:
            return UploadParts(header=header, chunk=chunk, inner=None)
        inner = chunk_field(chunk.message_type) if chunk.message_type is not None else None
        if inner is not None:
            return UploadParts(header=header, chunk=chunk, inner=inner)
    raise ValueError(f"{message.full_name} is no header and chunks: its stream cannot be an upload")


def _verb_and_noun(name: str, service: str) -> tuple[str, str]:
    verb, *noun = _WORDS.findall(name)
    return verb.lower(), "".join(noun) or service.removesuffix("Service")


def _path(rpc: MethodDescriptor, verb: str, noun: str) -> tuple[str, tuple[FieldDescriptor, ...]]:
    message = rpc.input_type
    written = EXCEPTIONS.get(rpc.name)
    if written is None:
        key = None if verb in _MAKING | {"list"} else _key_field(message, noun)
        single = verb in {"get", "update"} and key is None
        written = "/" + _kebab(noun if single else _plural(noun))
        written += f"/{{{key.name}}}" if key is not None else ""
        written += "" if verb in _PLAIN else f":{verb}"
    fields = tuple(message.fields_by_name[name] for name in _PARAMETER.findall(written))
    return _PARAMETER.sub(lambda found: f"{{{_json_name(message, found[1])}}}", written), fields


def _json_name(message: Descriptor, field: str) -> str:
    return str(message.fields_by_name[field].json_name)


def _key_field(message: Descriptor, noun: str) -> FieldDescriptor | None:
    """Return the field that says which `noun` is meant."""
    snake = "_".join(_WORDS.findall(noun)).lower()
    names: Sequence[str] = (f"{snake}_id", snake, "name")
    for field in (message.fields_by_name.get(name) for name in names):
        if field is None or field.is_repeated:
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            return field
        if field.message_type is not None and field.message_type.full_name in TEXT_FORMS:
            return field
    return None


def _kebab(noun: str) -> str:
    return "-".join(_WORDS.findall(noun)).lower()


def _plural(noun: str) -> str:
    if noun.endswith("s"):
        return noun  # plural already, or like "access" without one
    if noun.endswith("y"):
        return noun[:-1] + "ies"
    return noun + "s"
