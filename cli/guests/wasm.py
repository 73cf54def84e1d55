"""Reads and rewrites the few sections of a WebAssembly module that a saved start changes. Pure.

Section numbers and encodings: WebAssembly core specification 2.0, chapter 5.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shared.errors import ModuleInvalidError

PAGE_BYTES: Final = 65_536
GLOBAL_EXPORT: Final = "agentfactory_global_"
_HEADER: Final = b"\0asm\1\0\0\0"
_CUSTOM, _IMPORT, _MEMORY, _GLOBAL, _EXPORT, _START, _DATA, _DATA_COUNT = 0, 2, 5, 6, 7, 8, 11, 12
_KIND_FUNCTION, _KIND_GLOBAL = 0, 3
_I32: Final = 0x7F
_I32_CONST, _END = 0x41, 0x0B
_CHUNK: Final = 4096
"""Pages of this size without a set bit are left out: the engine gives zeros for nothing."""
PAGES_SECTION: Final = "agentfactory.pages"
"""Custom section of the pages that a run writes; read by data_plane/engine/module/src/pages.rs."""


def unsigned(value: int) -> bytes:
    """Return `value` as unsigned LEB128."""
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits to a byte
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value: int) -> bytes:
    """Return `value` as signed LEB128."""
    out = bytearray()
    while not -0x40 <= value < 0x40:  # noqa: PLR2004 - seven bits, one of them the sign
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


class Reader:
    """A cursor over encoded bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        """Return the next byte."""
        if self.at >= len(self.data):
            raise ModuleInvalidError("module ends early")
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        """Return the next unsigned number."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:  # noqa: PLR2004 - the last byte of a number
                return value

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        if self.at + size > len(self.data):
            raise ModuleInvalidError("module ends early")
        self.at += size
        return self.data[self.at - size : self.at]

    def name(self) -> str:
        """Return the next name."""
        return self.take(self.number()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One export: its name, what it is and which."""

    name: str
    kind: int
    index: int

    def encode(self) -> bytes:
        """Return its bytes."""
        name = self.name.encode()
        return unsigned(len(name)) + name + bytes([self.kind]) + unsigned(self.index)


Sections = Sequence[tuple[int, bytes]]


def split(module: bytes) -> Sections:
    """Return the sections of a module in their order, custom ones left out.

    Raises:
        ModuleInvalidError: It is none, or ends early.
    """
    if module[:8] != _HEADER:
        raise ModuleInvalidError("this is no WebAssembly module")
    reader = Reader(module)
    sections: list[tuple[int, bytes]] = []
    reader.take(8)
    while reader.at < len(module):
        number = reader.byte()
        body = reader.take(reader.number())
        if number != _CUSTOM:
            sections.append((number, body))
    return sections


def join(sections: Sections) -> bytes:
    """Return the module of these sections."""
    return _HEADER + b"".join(bytes([number]) + unsigned(len(body)) + body for number, body in sections)


def minimum_memory_bytes(module: bytes) -> int:
    """Return how much memory a module has before it runs; what follows its memory is not looked at.

    Raises:
        ModuleInvalidError: It ends early, or has not one memory of its own.
    """
    reader = Reader(module)
    reader.take(len(_HEADER))
    while reader.byte() != _MEMORY:
        size = reader.number()
        reader.at += size
    reader.number()
    if reader.number() != 1:
        raise ModuleInvalidError("the module has not one memory")
    reader.byte()
    return reader.number() * PAGE_BYTES


def mutable_globals(sections: Sections) -> list[int]:
    """Return the indices of the globals that running code may change; each is an i32 with a constant.

    Raises:
        ModuleInvalidError: A global is of another type or is imported: it could not be saved.
    """
    found: list[int] = []
    for index, (kind, is_mutable, _) in enumerate(_globals(_section(sections, _GLOBAL))):
        if is_mutable and kind != _I32:
            raise ModuleInvalidError("a global of the runtime is no i32: its start cannot be saved")
        if is_mutable:
            found.append(index)
    return found


def with_globals_exported(module: bytes) -> bytes:
    """Return the module with each mutable global exported, to be read after the start."""
    sections = split(module)
    more = [Export(name=f"{GLOBAL_EXPORT}{n}", kind=_KIND_GLOBAL, index=n) for n in mutable_globals(sections)]
    exports = [*_exports(_section(sections, _EXPORT)), *more]
    return join(_replaced(sections, {_EXPORT: _vector([each.encode() for each in exports])}))


def saved(
    module: bytes,
    *,
    memory: bytes,
    globals_: Mapping[int, int],
    entry: str,
    kept: Sequence[str],
    written: Sequence[int] = (),
) -> bytes:
    """Return the module as it is after its start: this memory, these globals, `entry` renamed to `_start`.

    Of the other exports only those in `kept` stay. `written` are the pages that a run is expected to write,
    which the module says in a section of its own.

    Raises:
        ModuleInvalidError: The module has parts that a saved start cannot stand for.
    """
    sections = split(module)
    if any(number == _START for number, _ in sections):
        raise ModuleInvalidError("the runtime has a start function, which would run again")
    exports = []
    for each in _exports(_section(sections, _EXPORT)):
        if each.name == entry:
            exports.append(Export(name="_start", kind=_KIND_FUNCTION, index=each.index))
        elif each.name in kept:
            exports.append(each)
    segments = [
        b"\0" + bytes([_I32_CONST]) + signed(_as_i32(at)) + bytes([_END]) + unsigned(len(data)) + data
        for at, data in _runs(memory)
    ]
    changed = {
        _MEMORY: _memory(_section(sections, _MEMORY), len(memory) // PAGE_BYTES),
        _GLOBAL: _saved_globals(_section(sections, _GLOBAL), globals_),
        _EXPORT: _vector([each.encode() for each in exports]),
        _DATA: _vector(segments),
        _DATA_COUNT: unsigned(len(segments)),
    }
    said = [(_CUSTOM, _pages_section(written))] if written else []
    return join([*_replaced(sections, changed), *said])


def _pages_section(pages: Sequence[int]) -> bytes:
    name = PAGES_SECTION.encode()
    return unsigned(len(name)) + name + struct.pack(f"<{len(pages)}I", *pages)


def _section(sections: Sections, wanted: int) -> bytes:
    return next((body for number, body in sections if number == wanted), b"\0")


def _replaced(sections: Sections, changed: Mapping[int, bytes]) -> Sections:
    return [(number, changed.get(number, body)) for number, body in sections]


def _vector(items: Sequence[bytes]) -> bytes:
    return unsigned(len(items)) + b"".join(items)


def _exports(body: bytes) -> Iterator[Export]:
    reader = Reader(body)
    for _ in range(reader.number()):
        yield Export(name=reader.name(), kind=reader.byte(), index=reader.number())


def _globals(body: bytes) -> Iterator[tuple[int, bool, bytes]]:
    reader = Reader(body)
    for _ in range(reader.number()):
        kind, is_mutable = reader.byte(), reader.byte() == 1
        start = reader.at
        while reader.byte() != _END:
            # An operand could hold the byte of an end: it is a number, which `number` passes over.
            reader.number()
        yield kind, is_mutable, body[start : reader.at]


def _saved_globals(body: bytes, values: Mapping[int, int]) -> bytes:
    items = []
    for index, (kind, is_mutable, start) in enumerate(_globals(body)):
        expression = start
        if index in values:
            expression = bytes([_I32_CONST]) + signed(values[index]) + bytes([_END])
        items.append(bytes([kind, is_mutable]) + expression)
    return _vector(items)


def _memory(body: bytes, pages: int) -> bytes:
    reader = Reader(body)
    if reader.number() != 1:
        raise ModuleInvalidError("the runtime has not one memory")
    has_maximum = reader.byte() & 1
    reader.number()
    maximum = unsigned(reader.number()) if has_maximum else b""
    return b"\1" + bytes([has_maximum]) + unsigned(pages) + maximum


def _runs(memory: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what of the memory is not zero: neighbouring chunks together, zeros at both ends left out."""
    start: int | None = None
    for at in range(0, len(memory) + _CHUNK, _CHUNK):
        chunk = memory[at : at + _CHUNK]
        has_bits = chunk.count(0) != len(chunk)
        if has_bits and start is None:
            start = at
        elif not has_bits and start is not None:
            data = memory[start:at]
            left = data.lstrip(b"\0")
            yield start + len(data) - len(left), left.rstrip(b"\0")
            start = None


def _as_i32(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value
