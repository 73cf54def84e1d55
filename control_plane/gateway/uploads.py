"""Streaming uploads: a multipart/form-data body to a client stream, a piece at a time.

The header's fields come first, each a part of its own, then the one large part. What is held in memory is the
header and one piece; the next piece is read when gRPC has taken the one before.
"""

import base64
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from control_plane.gateway.fields import rules_of, text_value
from control_plane.gateway.models import Model, Models, Plain
from control_plane.gateway.problems import Violation, invalid
from control_plane.gateway.requests import check_fields, parse_message
from control_plane.gateway.routes import Route, upload_parts

MAX_FIELD_BYTES: Final = 1024
"""Of a part of the header that is no bytes."""

MAX_PARTS: Final = 32
MAX_PART_HEADERS: Final = 8
MAX_PART_HEADER_BYTES: Final = 1024

PIECE_BYTES: Final = 256 * 1024
"""Of one message to the control plane."""


NOT_MULTIPART: Final = "is not multipart/form-data with the boundary that Content-Type names"


class UploadForm:
    """What an upload of one RPC is made of."""

    def __init__(self, route: Route, models: Models) -> None:
        self.route = route
        self._parts = upload_parts(route.request)
        header = self._parts.header.message_type
        assert header is not None  # so are the parts of an upload
        self.header_model: Model = models.input(header)
        self.fields: Mapping[str, FieldDescriptor] = {str(one.json_name): one for one in header.fields}
        self.content_name = _content_name(route)
        self._message: type[Message] = GetMessageClass(route.request)

    def header_message(self, document: dict[str, Any]) -> Message:
        """Return the first message of the stream.

        Raises:
            ProblemError: A field is missing or not as the API says.
        """
        check_fields(self.header_model, document)
        return parse_message(self._message(), {self._parts.header.json_name: document})

    def chunk_message(self, data: bytes) -> Message:
        """Return a later message of the stream."""
        message = self._message()
        if self._parts.inner is None:
            setattr(message, self._parts.chunk.name, data)
        else:
            setattr(getattr(message, self._parts.chunk.name), self._parts.inner.name, data)
        return message

    def max_bytes(self, name: str) -> int:
        """Return how long a part of the header may be."""
        named = rules_of(self.fields[name])
        if self.fields[name].type != FieldDescriptor.TYPE_BYTES:
            return MAX_FIELD_BYTES
        return named.bytes.max_len or MAX_FIELD_BYTES

    def value(self, name: str, data: bytes) -> Any:
        """Return a part of the header as proto3 JSON has it."""
        described = self.fields[name]
        if described.type == FieldDescriptor.TYPE_BYTES:
            return base64.b64encode(data).decode()
        try:
            return text_value(described, data.decode())
        except UnicodeDecodeError:
            raise invalid([Violation(location="body", pointer=f"/{name}", detail="is not UTF-8")]) from None

    def to_openapi(self) -> dict[str, Any]:
        """Return the media type object."""
        schema = self.header_model.model_json_schema(schema_generator=Plain)
        schema.pop("title", None)
        for name, described in self.fields.items():
            if described.type == FieldDescriptor.TYPE_BYTES:
                schema["properties"][name] = {"type": "string", "format": "binary"}
        schema["properties"][self.content_name] = {"type": "string", "format": "binary"}
        schema["required"] = [*schema.get("required", ()), self.content_name]
        schema["description"] = f"`{self.content_name}` is the last part."
        return {
            "schema": schema,
            "encoding": {self.content_name: {"contentType": "application/octet-stream"}},
        }


def _content_name(route: Route) -> str:
    chunk = upload_parts(route.request).chunk
    if chunk.message_type is not None and chunk.message_type.name.endswith("Chunk"):
        return str(chunk.message_type.name).removesuffix("Chunk").lower()
    return route.path.rpartition("/")[2].replace("bodies", "body")


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a multipart/form-data header names; empty: it is no such header."""
    kind, options = parse_options_header(content_type)
    return options.get(b"boundary", b"") if kind == b"multipart/form-data" else b""


class UploadReader:
    """Turns the pieces of one body into the messages of its stream. Bounds every part."""

    def __init__(self, form: UploadForm, boundary: bytes) -> None:
        self._form = form
        self._document: dict[str, Any] = {}
        self._name = ""  # of the part that is read
        self._header_name = bytearray()
        self._disposition = bytearray()
        self._value = bytearray()
        self._ready: list[Message] = []
        self._parts = 0
        self._state = "header"
        self._parser = _parser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    async def messages(self, pieces: AsyncGenerator[bytes]) -> AsyncGenerator[Message]:
        """Yield the messages of the stream.

        Raises:
            ProblemError: The body is no multipart/form-data as OpenAPI describes it, or ends early.
        """
        async for piece in pieces:
            for at in range(0, len(piece), PIECE_BYTES):
                self._feed(piece[at : at + PIECE_BYTES])
                ready, self._ready = self._ready, []
                for message in ready:
                    yield message
        if self._state != "ended":
            raise _wrong("", f"the body ends before part {self._form.content_name} does")

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError:
            raise _wrong("", NOT_MULTIPART) from None

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _wrong("", f"has more than {MAX_PARTS} parts")
        if self._state != "header":
            raise _wrong("", f"part {self._form.content_name} is not the last one")
        self._disposition.clear()
        self._value.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition += data[start:end]

    def _on_header_end(self) -> None:
        self._header_name.clear()

    def _on_headers_finished(self) -> None:
        kind, options = parse_options_header(bytes(self._disposition))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or name not in {*self._form.fields, self._form.content_name}:
            raise _wrong(f"/{name[:64]}", "there is no such part")
        if name in self._document:
            raise _wrong(f"/{name}", "is given twice")
        self._name = name
        if name == self._form.content_name:
            self._state = "content"
            self._ready.append(self._form.header_message(self._document))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        if self._state == "content":
            # The parser hands out slices between line ends, of which a module has many.
            if len(self._value) >= PIECE_BYTES:
                self._flush()
        elif len(self._value) > self._form.max_bytes(self._name):
            raise _wrong(f"/{self._name}", f"has more than {self._form.max_bytes(self._name)} bytes")

    def _on_part_end(self) -> None:
        if self._state == "content":
            self._flush()
            self._state = "complete"
        else:
            self._document[self._name] = self._form.value(self._name, bytes(self._value))

    def _on_end(self) -> None:
        if self._state != "complete":
            raise _wrong(f"/{self._form.content_name}", "is missing")
        self._state = "ended"

    def _flush(self) -> None:
        if self._value:
            self._ready.append(self._form.chunk_message(bytes(self._value)))
            self._value.clear()


def _parser(boundary: bytes, callbacks: dict[str, Any]) -> MultipartParser:
    try:
        return MultipartParser(
            boundary,
            callbacks,  # type: ignore[arg-type]  # the library's type names each of them
            max_header_count=MAX_PART_HEADERS,
            max_header_size=MAX_PART_HEADER_BYTES,
        )
    except FormParserError:
        raise _wrong("", NOT_MULTIPART) from None


def _wrong(pointer: str, detail: str) -> Exception:
    return invalid([Violation(location="body", pointer=pointer, detail=detail)])
