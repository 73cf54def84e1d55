"""What the contract lets in as text: it ends up in orders, logs and Postgres."""

import pytest
from agentfactory.v1 import executions_pb2

from shared.errors import InvalidInputError
from shared.rpc.validation import validate

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def asked(**changes: str) -> executions_pb2.ExecutionRequest:
    return executions_pb2.ExecutionRequest(
        **{"agent": "redact", "request_id": "r-1", "inline": b"", **changes}
    )


@pytest.mark.parametrize("request_id", ["r", "a b/c:d~e", "x" * 128])
def test_a_request_id_is_printable_ascii(request_id: str):
    validate(asked(request_id=request_id, traceparent=TRACE))


@pytest.mark.parametrize("field", ["request_id", "traceparent"])
@pytest.mark.parametrize("text", ["a\0", "a\n", "\x1b[2J", "caf\u00e9", "\u202e", "a\x7f"])
def test_control_characters_and_other_scripts_are_refused(field: str, text: str):
    with pytest.raises(InvalidInputError, match=field):
        validate(asked(**{field: text}))
