import pytest

from shared import errors
from shared.errors import AgentFactoryError, InvalidInputError, OrderRejectedError, RejectionReason


def all_errors() -> list[type[AgentFactoryError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, AgentFactoryError) and value is not AgentFactoryError
    ]


def test_every_error_has_a_reason_of_its_own():
    reasons = [error.__dict__.get("reason") for error in all_errors()]
    assert None not in reasons
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("error", all_errors())
def test_error_says_when_it_is_raised_and_ends_in_error(error):
    assert error.__doc__
    assert error.__name__.endswith("Error")
    assert error.reason == error.reason.upper()


def test_hint_of_the_raiser_wins_over_the_class():
    assert InvalidInputError("name is empty").hint == InvalidInputError.hint
    assert InvalidInputError("name is empty", hint="set name").hint == "set name"
    assert InvalidInputError.hint != "set name"


def test_rejection_carries_its_check_number_and_reason():
    error = OrderRejectedError("order has expired", check=4, rejection=RejectionReason.TIME)
    assert (str(error), error.check, error.rejection) == (
        "check 4: order has expired",
        4,
        RejectionReason.TIME,
    )


def test_only_reasons_of_one_node_exclude_that_node_alone():
    alone = {reason for reason in RejectionReason if reason.concerns_node_alone}
    assert alone == {"busy", "draining", "stale", "spool", "engine", "time"}
