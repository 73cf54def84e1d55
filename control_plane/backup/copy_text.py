"""Rows of a dump as pg_restore writes them: COPY text (its manual: "COPY", "Text Format"). No I/O."""

import re
from collections.abc import Iterator, Mapping
from typing import IO, Final

from shared.errors import MalformedError

Row = Mapping[str, bytes | None]

_COPY: Final = re.compile(
    rb'COPY (?:public|partitions)\.(?P<table>[a-z0-9_"]+) \((?P<columns>[^)]*)\) FROM stdin;\n'
)
_ESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)
_MEANS: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v", b"\\": b"\\"}
_MAX_LINE_BYTES: Final = 512 * 1024 * 1024
"""A module or body of 64 MiB in hexadecimal, four times over."""


def rows(text: IO[bytes], wanted: frozenset[str]) -> Iterator[tuple[str, Row]]:
    """Yield table and columns of each row of the wanted tables, as they come.

    Raises:
        MalformedError: The text is none of a dump.
    """
    while line := text.readline(_MAX_LINE_BYTES):
        match = _COPY.fullmatch(line)
        if match is None:
            continue
        table = match["table"].decode().strip('"')
        columns = [name.strip(' "') for name in match["columns"].decode().split(",")]
        for row in _block(text):
            if table in wanted:
                yield table, _row(columns, row)


def _block(text: IO[bytes]) -> Iterator[bytes]:
    while (line := text.readline(_MAX_LINE_BYTES)) != b"\\.\n":
        if not line.endswith(b"\n"):
            raise MalformedError("the dump ends in the middle of a table")
        yield line[:-1]


def _row(columns: list[str], line: bytes) -> Row:
    values = line.split(b"\t")
    if len(values) != len(columns):
        raise MalformedError(f"a row of the dump has {len(values)} columns, not {len(columns)}")
    return dict(zip(columns, map(_value, values), strict=True))


def _value(field: bytes) -> bytes | None:
    if field == b"\\N":
        return None
    if b"\\" not in field:
        return field
    return _ESCAPE.sub(lambda match: _MEANS.get(match[1], match[1]), field)


def binary(value: bytes | None) -> bytes:
    """Return what a bytea column holds.

    Raises:
        MalformedError: It is not in hexadecimal.
    """
    if value is None or not value.startswith(b"\\x"):
        raise MalformedError("a column of the dump is no bytea in hexadecimal")
    try:
        return bytes.fromhex(value[2:].decode("ascii"))
    except ValueError as error:
        raise MalformedError("a column of the dump is no bytea in hexadecimal") from error


def text_of(value: bytes | None) -> str:
    """Return what a text column holds; empty for null."""
    return "" if value is None else value.decode()


def number(value: bytes | None) -> int:
    """Return what a column of numbers holds.

    Raises:
        MalformedError: It is none.
    """
    try:
        return int(value or b"")
    except ValueError as error:
        raise MalformedError("a column of the dump is no number") from error
