"""The page of the gRPC contract: services, messages and enums with the comments and rules of the .proto files."""

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2, text_format

from control_plane.access.rules import RULES

GENERATE: Final = Path(__file__).resolve().parents[2] / "protos" / "generate.py"
PACKAGE: Final = "agentfactory.v1"
# Field numbers of descriptor.proto, of which paths of comments consist.
FILE_MESSAGE, FILE_ENUM, FILE_SERVICE = 4, 5, 6
MESSAGE_FIELD, MESSAGE_NESTED, MESSAGE_ENUM = 2, 3, 4
ENUM_VALUE = 2
SERVICE_METHOD = 2
Path_ = tuple[int, ...]
Field = descriptor_pb2.FieldDescriptorProto
INTRO: Final = """# gRPC contract

Made of `protos/agentfactory/v1`. Callers use `agentfactory.v1` with the stubs of `protos/gen`, or generate their own. Who may
call what is also in [access](../access.md); how errors look is in [REST](../rest.md#errors) and [protocol](../protocol.md).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One .proto file and its comments."""

    file: descriptor_pb2.FileDescriptorProto
    comments: Mapping[Path_, str]

    def said(self, *path: int) -> str:
        """Return the comment in front of a thing, its lines as they stand."""
        return self.comments.get(path, "")


def page() -> str:
    """Return the page: services first, then what their messages are."""
    sources = [source for source in read() if source.file.package == PACKAGE]
    services = "".join(part for source in sources for part in _services(source))
    types = "".join(part for source in sources for part in _types(source))
    return INTRO + services + "\n## Messages\n" + types


def read() -> list[Source]:
    """Return the files of the contract, compiled with their comments."""
    spec = importlib.util.spec_from_file_location("generate_protos", GENERATE)
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "contract.binpb"
        generate.write_descriptors(image)
        found = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    return [Source(file=file, comments=_comments(file)) for file in found.file]


def _comments(file: descriptor_pb2.FileDescriptorProto) -> dict[Path_, str]:
    return {
        tuple(place.path): "\n".join(
            line.strip() for line in place.leading_comments.strip().splitlines()
        ).replace("<", "&lt;")
        for place in file.source_code_info.location
        if place.leading_comments
    }


def _services(source: Source) -> Iterator[str]:
    for number, service in enumerate(source.file.service):
        yield f"\n## {service.name}\n\n{source.said(FILE_SERVICE, number)}\n"
        for index, method in enumerate(service.method):
            rule = RULES.get(f"/{PACKAGE}.{service.name}/{method.name}")
            asked = f"{'stream ' if method.client_streaming else ''}{_link(method.input_type)}"
            given = f"{'stream ' if method.server_streaming else ''}{_link(method.output_type)}"
            bound = f" · at most {int(rule.deadline.total_seconds())} s" if rule else ""
            yield (
                f"\n### {service.name}.{method.name}\n\n{asked} → {given}{bound}\n\n"
                f"{source.said(FILE_SERVICE, number, SERVICE_METHOD, index)}\n"
            )


def _types(source: Source) -> Iterator[str]:
    for number, message in enumerate(source.file.message_type):
        yield from _message(source, message, "", (FILE_MESSAGE, number))
    for number, enum in enumerate(source.file.enum_type):
        yield _enum(source, enum, "", (FILE_ENUM, number))


def _message(
    source: Source, message: descriptor_pb2.DescriptorProto, outer: str, path: Path_
) -> Iterator[str]:
    if message.options.map_entry:
        return
    name = outer + message.name
    head = f"\n### {name}\n\n{source.said(*path)}".rstrip() + "\n"
    rows = "".join(
        _field(source, message, field, (*path, MESSAGE_FIELD, index))
        for index, field in enumerate(message.field)
    )
    yield head + (f"\n| field | type | rules | |\n|---|---|---|---|\n{rows}" if rows else "\nNo fields.\n")
    for index, nested in enumerate(message.nested_type):
        yield from _message(source, nested, f"{name}.", (*path, MESSAGE_NESTED, index))
    for index, enum in enumerate(message.enum_type):
        yield _enum(source, enum, f"{name}.", (*path, MESSAGE_ENUM, index))


def _field(source: Source, message: descriptor_pb2.DescriptorProto, field: Field, path: Path_) -> str:
    entry = next(
        (
            one
            for one in message.nested_type
            if one.options.map_entry and field.type_name.endswith(f".{one.name}")
        ),
        None,
    )
    if entry is not None:
        kind = f"map of {_type(entry.field[0])} to {_type(entry.field[1])}"
    else:
        kind = ("repeated " if field.label == Field.LABEL_REPEATED else "") + _type(field)
    one_of = field.HasField("oneof_index") and not field.proto3_optional
    said = " ".join(source.said(*path).split())
    if one_of:
        said = f"One of `{message.oneof_decl[field.oneof_index].name}`. {said}".strip()
    cells = (f"`{field.name}` = {field.number}", kind, _rules(field), said)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _rules(field: Field) -> str:
    options = descriptor_pb2.FieldOptions.FromString(field.options.SerializeToString())
    if not options.HasExtension(validate_pb2.field):
        return ""
    rules = options.Extensions[validate_pb2.field]
    return f"`{text_format.MessageToString(rules, as_one_line=True).strip()}`"


def _type(field: Field) -> str:
    if field.type_name:
        return _link(field.type_name)
    return f"`{Field.Type.Name(field.type).removeprefix('TYPE_').lower()}`"


def _link(full_name: str) -> str:
    name = full_name.removeprefix(f".{PACKAGE}.")
    if name == full_name:
        return f"`{full_name.removeprefix('.')}`"
    return f"[{name}](#{name.lower().replace('.', '')})"


def _enum(source: Source, enum: descriptor_pb2.EnumDescriptorProto, outer: str, path: Path_) -> str:
    rows = "".join(
        f"| `{value.name}` = {value.number} | {' '.join(source.said(*path, ENUM_VALUE, index).split())} |\n"
        for index, value in enumerate(enum.value)
    )
    return (
        f"\n### {outer}{enum.name}\n\n{source.said(*path)}".rstrip() + f"\n\n| value | |\n|---|---|\n{rows}"
    )
