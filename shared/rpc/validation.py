"""Messages against the rules of the contract (buf.validate). One validator; changes no message."""

from collections.abc import AsyncIterator
from typing import Final

from google.protobuf.message import Message
from protovalidate import ValidationError, Validator, Violation

from shared.errors import FieldViolation, InvalidInputError

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
        found = [_field_violation(violation) for violation in error.violations[:MAX_VIOLATIONS]]
        said = [
            f"{one.field.replace('/', '.')}: {one.description}" if one.field else one.description
            for one in found
        ]
        raise InvalidInputError("; ".join(said), violations=[one for one in found if one.field]) from None


async def validated(messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
    """Yield each message of a stream once it has been validated."""
    async for message in messages:
        validate(message)
        yield message


def _field_violation(violation: Violation) -> FieldViolation:
    """Without the key where a map is wrong: that came from outside."""
    proto = violation.proto
    elements = proto.field.elements if proto.field is not None else ()
    return FieldViolation(
        field="/".join(element.field_name for element in elements), description=proto.message or proto.rule_id
    )
