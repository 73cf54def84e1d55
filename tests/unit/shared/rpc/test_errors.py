"""Every typed error has a status, and comes back typed at the other end."""

from datetime import timedelta

import grpc
import pytest

# Errors outside shared/errors.py count too.
import control_plane.main
import shared.rpc.errors
from shared import errors
from shared.errors import AgentFactoryError, FieldViolation, InvalidInputError
from shared.rpc.errors import (
    MAX_MESSAGE_CHARS,
    RemoteError,
    all_errors,
    error_of,
    reason_of,
    typed_error,
    wire_error,
)
from shared.rpc.status import STATUS_BY_ERROR, status_of

assert control_plane.main
LOCAL = {RemoteError}


class FailedCall(grpc.RpcError):
    """What a client library raises."""

    def __init__(self, code, details, metadata=()):
        self._parts = code, details, metadata

    def code(self):
        return self._parts[0]

    def details(self):
        return self._parts[1]

    def trailing_metadata(self):
        return self._parts[2]


def over_the_wire(error: AgentFactoryError) -> AgentFactoryError:
    wire = wire_error(error)
    return error_of(FailedCall(wire.code, wire.message, wire.trailing_metadata))


def known_errors():
    return {kind for kind in all_errors(AgentFactoryError) if kind.__module__.split(".")[0] != "tests"}


def test_every_error_has_exactly_one_row_in_the_table():
    # RemoteError stands for what the other end said; it is never sent.
    assert known_errors() - LOCAL == set(STATUS_BY_ERROR)


def test_reasons_are_unique():
    reasons = [kind.reason for kind in known_errors()]
    assert len(reasons) == len(set(reasons))


@pytest.mark.parametrize("kind", sorted(STATUS_BY_ERROR, key=lambda kind: kind.__name__))
def test_an_error_comes_back_as_its_own_class(kind):
    error = kind.__new__(kind)
    AgentFactoryError.__init__(error, "what was wrong", hint="what to do")
    back = over_the_wire(error)
    assert (type(back), str(back), back.hint) == (kind, "what was wrong", "what to do")


def test_a_reason_of_a_newer_peer_keeps_its_name():
    class FutureError(AgentFactoryError):
        reason = "FROM_THE_FUTURE"

    try:
        wire = wire_error(errors.NotFoundError("gone"))
        renamed = tuple(
            (key, value.replace(b"NOT_FOUND", b"NEW_FOUND")) for key, value in wire.trailing_metadata
        )
        back = error_of(FailedCall(wire.code, wire.message, renamed))
    finally:
        del FutureError
    assert isinstance(back, RemoteError)
    assert reason_of(back) == "NEW_FOUND"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceededError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.UnauthenticatedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhaustedError),
        (grpc.StatusCode.UNIMPLEMENTED, RemoteError),
    ],
)
def test_a_status_without_details_is_typed_as_well(code, kind):
    assert type(error_of(FailedCall(code, "no words"))) is kind


def test_garbage_in_the_details_is_no_crash():
    back = error_of(
        FailedCall(grpc.StatusCode.NOT_FOUND, "x", ((shared.rpc.errors.DETAILS_KEY, b"\xff\xff"),))
    )
    assert isinstance(back, RemoteError)


def test_a_long_message_is_cut():
    assert len(wire_error(errors.InvalidInputError("x" * 100_000)).message) == MAX_MESSAGE_CHARS


def test_the_first_typed_error_of_a_group_speaks_for_it():
    inner = errors.ConflictError("two at once")
    group = ExceptionGroup("tasks", [ValueError("bug"), ExceptionGroup("deeper", [inner])])
    assert typed_error(group) is inner
    assert typed_error(ValueError("bug")) is None


def test_a_subclass_has_a_status_of_its_own():
    assert status_of(errors.DiskFullError("full")) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("kind", [errors.ResourceExhaustedError, errors.UnavailableError])
def test_when_to_come_again_goes_over_the_wire(kind):
    wait = timedelta(milliseconds=250)
    assert over_the_wire(kind("full", retry_after=wait)).retry_after == wait
    assert over_the_wire(kind("full")).retry_after is None


def test_what_is_wrong_field_by_field_arrives_as_it_was_sent():
    wrong = (
        FieldViolation(field="parameters/a", description="expected integer, got null"),
        FieldViolation(field="parameters/é", description="expected a value, got nothing"),
    )
    back = over_the_wire(InvalidInputError("parameters are wrong", violations=wrong))
    assert (type(back), str(back), back.violations) == (InvalidInputError, "parameters are wrong", wrong)


def test_violations_stay_within_what_headers_carry():
    many = [FieldViolation(field=f"parameters/{'x' * 190}{n}", description="y" * 150) for n in range(16)]
    wire = wire_error(InvalidInputError("z" * 5000, violations=many))
    assert sum(len(value) for _, value in wire.trailing_metadata) < 6000
    back = error_of(FailedCall(wire.code, wire.message, wire.trailing_metadata))
    assert 0 < len(back.violations) < len(many)
