"""What an operator may say of servers of models, and what is refused at the start."""

import pytest
from pydantic import ValidationError

from data_plane.settings import LlmEndpointSettings

GOOD = {"url": "https://models.test/v1", "models": {"small": {"answer_micros": 5}}, "secret": "llm-key"}


def test_an_endpoint_is_where_its_completions_are():
    made = LlmEndpointSettings(**GOOD).endpoint
    assert str(made.url) == "https://models.test/v1/chat/completions"
    assert made.models["small"].cost(1_000_000, 1_000_001) == 6
    assert not made.is_key_of_tenant


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://models.test/v1/"},
        {"url": "http://10.0.0.1/v1/"},
        {"url": "file:///v1/"},
        {"url": "https://me@models.test/v1/"},
        {"models": {}},
        {"models": {"small": {"price": 1}}},
        {"models": {"small": {"prompt_micros": -1}}},
        {"models": {"/": {}}},
        {"secret": "NOT A NAME"},
        {"key_of": "anybody"},
        {"timeout_s": 0},
        {"more": 1},
    ],
)
def test_an_endpoint_that_is_none_or_shows_its_key_is_refused(changes):
    with pytest.raises(ValidationError):
        LlmEndpointSettings(**(GOOD | changes))


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/v1/", "http://[::1]:8080/v1/"])
def test_a_key_may_travel_within_the_machine(url):
    assert LlmEndpointSettings(**(GOOD | {"url": url})).endpoint.url.port == 8080


def test_without_a_key_a_server_in_the_network_may_be_asked():
    plain = GOOD | {"url": "http://models.internal.test:8080/v1/", "secret": None}
    assert LlmEndpointSettings(**plain).endpoint.secret is None
