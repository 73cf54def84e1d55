"""Whether an execution's input or output is JSON that fits its template's schema. Keeps nothing.

The control plane asks before it stores anything, the node again before the guest and after it.
"""

import asyncio
from typing import Final

from shared.canonical import parse_value
from shared.errors import InvalidInputError, MalformedError
from shared.schemas import JsonSchema

MAX_JUDGED_BYTES: Final = 1024 * 1024
"""Of a body that has a schema: parsed, it takes many times as much memory."""

_AT_ONCE_BYTES: Final = 16 * 1024
"""Parsed where it is; larger ones in a thread, so that nobody else waits."""


async def check_body(schema: JsonSchema | None, content: bytes, what: str) -> None:
    """Return if there is no schema, or `content` is JSON that fits it.

    Raises:
        InvalidInputError: It is above 1 MiB, no JSON, or breaks the schema; each wrong field is named, with
            what was expected and what kind of value was found.
    """
    if schema is None:
        return
    if len(content) <= _AT_ONCE_BYTES:
        _check(schema, content, what)
    else:
        await asyncio.to_thread(_check, schema, content, what)


def _check(schema: JsonSchema, content: bytes, what: str) -> None:
    if len(content) > MAX_JUDGED_BYTES:
        raise InvalidInputError(
            f"{what} has {len(content)} bytes; where there is a schema for it, at most {MAX_JUDGED_BYTES}"
        )
    try:
        value = parse_value(content, max_bytes=MAX_JUDGED_BYTES)
    except MalformedError as error:
        raise InvalidInputError(f"{what}: {error}") from error
    schema.check(value, what)
