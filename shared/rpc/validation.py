"""Messages against the rules of the contract (buf.validate). One validator; changes no message."""

from collections.abc import AsyncIterator
from typing import Final

from google.protobuf.message import Message
from protovalidate import ValidationError, Validator, Violation

from shared.errors import InvalidInputError

MAX_VIOLATIONS: Final = 5
"""Named in one answer."""

_validator: Final = Validator()


def validate(message: Message) -> None:
    """Return if the message keeps every rule of its type.

    Raises:
        InvalidInputError: It breaks one; the message names fields and rules, never values.
    """
    try:
        _validator.validate(message)
    except ValidationError as error:
        problems = [_describe(violation) for violation in error.violations[:MAX_VIOLATIONS]]
        raise InvalidInputError("; ".join(problems)) from None


async def validated(messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
    """Yield each message of a stream once it has been validated."""
    async for message in messages:
        validate(message)
        yield message


def _describe(violation: Violation) -> str:
    proto = violation.proto
    path = ".".join(element.field_name for element in proto.field.elements) if proto.field is not None else ""
    rule = proto.message or proto.rule_id
    return f"{path}: {rule}" if path else rule
