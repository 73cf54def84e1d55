"""`llm.complete` over real HTTP: what agents get, what counts, and what endpoints cannot do."""

import base64
import json
import zlib
from datetime import timedelta

import pytest

from data_plane.host_calls.http_client import DirectHttp, make_tls
from data_plane.host_calls.llm import LlmEndpoint, Prices
from data_plane.host_calls.llm_complete import LlmPolicy
from data_plane.host_calls.secrets import Secret
from shared.manifest import Capabilities, LlmCapability
from shared.urls import parse_url
from tests.fixtures.llm_endpoint import KEY, ModelServer, completion, model_server, response
from tests.unit.data_plane.host_calls.builders import World

MODEL = "local/small"
PRICES = Prices(prompt=1_000_000, answer=2_000_000)
ASK = [{"role": "user", "content": "two and two?"}]
PROMPT_BYTES = len(json.dumps({"messages": ASK}, separators=(",", ":")))


@pytest.fixture
async def server():
    async with model_server() as server:
        yield server


def world(server: ModelServer, *, timeout=timedelta(seconds=20), url=None, **changes) -> World:
    granted = {"models": (MODEL,), "max_tokens": 1000} | changes
    made = World(
        capabilities=Capabilities(llm=LlmCapability(**granted), record_host_calls=True),
        transport=DirectHttp(make_tls(None)),
        llm=LlmPolicy(
            endpoints={
                "local": LlmEndpoint(
                    url=parse_url((url or server.url) + "chat/completions"),
                    models={"small": PRICES},
                    secret="llm-key",
                    timeout=timeout,
                )
            }
        ),
    )
    made.secrets.secrets["_operator", "llm-key"] = Secret(value=KEY, urls=(parse_url(url or server.url),))
    return made


async def complete(made: World, **params):
    return await made.ok("llm.complete", **({"model": MODEL, "messages": ASK} | params))


def recorded(made: World) -> bytes:
    """All that the recording holds, unpacked."""
    lines = made.recording
    packed = [
        zlib.decompress(base64.b64decode(line[name])) for line in lines for name in ("request", "response")
    ]
    return b"\n".join([made.calls.conclude().recording, *packed])


async def refused(made: World, **params):
    return await made.refusal("llm.complete", **({"model": MODEL, "messages": ASK} | params))


async def test_an_agent_gets_an_answer_and_what_it_came_to(server):
    made = world(server, max_cost_micros=10_000)
    said = await complete(made, max_tokens=50, temperature=0.5)
    assert said == {
        "model": MODEL,
        "message": {"role": "assistant", "content": "four"},
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 12, "answer_tokens": 3, "cost_micros": 18},
        "left": {"tokens": 985, "cost_micros": 9982},
    }
    (heard,) = server.heard
    assert heard.body == {
        "model": "small",
        "messages": ASK,
        "temperature": 0.5,
        "max_tokens": 50,
        "stream": False,
    }
    assert heard.head.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"authorization: Bearer {KEY}" in heard.head
    summary = made.calls.conclude()
    assert (summary.llm_tokens, summary.llm_cost_micros) == (15, 18)
    assert KEY.encode() not in recorded(made)
    assert b"two and two?" in recorded(made)
    assert made.counted("llm_tokens_total") == 15


async def test_tools_go_there_and_back(server):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}, "index": 0}
    server.answer = lambda body: completion(None, tool_calls=[call], finish="tool_calls")
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    said = await complete(world(server), tools=tools)
    assert server.heard[0].body["tools"] == tools
    call.pop("index")
    assert said["message"] == {"role": "assistant", "content": None, "tool_calls": [call]}


async def test_only_models_of_the_order_that_the_operator_offers(server):
    made = world(server, models=(MODEL, "local/large", "else/small"))
    assert await refused(made, model="local/other") == "MODEL_NOT_ALLOWED"
    assert await refused(made, model="local/large") == "NOT_ALLOWED_HERE"
    assert await refused(made, model="else/small") == "NOT_ALLOWED_HERE"
    assert await refused(made, model="small") == "MODEL_NOT_ALLOWED"
    assert not server.heard
    assert made.denials["llm.complete", "model_not_allowed"] == 2


async def test_without_the_capability_there_is_nothing(server):
    made = World(transport=DirectHttp(make_tls(None)))
    assert await refused(made) == "NOT_GRANTED"


async def test_the_budget_is_never_passed_whatever_the_endpoint_says(server):
    made = world(server, max_tokens=200)
    server.answer = lambda body: completion(
        "four", usage={"prompt_tokens": 10**9, "completion_tokens": 10**9}
    )
    said = await complete(made, max_tokens=10)
    assert said["usage"]["prompt_tokens"] == PROMPT_BYTES
    assert said["usage"]["answer_tokens"] == 10
    for _ in range(20):
        if "error" in await made.call("llm.complete", model=MODEL, messages=ASK, max_tokens=10):
            break
    assert await refused(made, max_tokens=10) == "BUDGET_EXHAUSTED"
    assert made.calls.conclude().llm_tokens <= 200
    before = len(server.heard)
    assert await refused(made, max_tokens=10) == "BUDGET_EXHAUSTED"
    assert len(server.heard) == before


@pytest.mark.parametrize(
    ("usage", "prompt", "answer"),
    [
        ({"prompt_tokens": 0, "completion_tokens": 0}, 1, 1),
        ({"prompt_tokens": -5, "completion_tokens": -5}, 1, 1),
        ({}, PROMPT_BYTES, 100),
        ({"prompt_tokens": "1", "completion_tokens": True}, PROMPT_BYTES, 100),
    ],
)
async def test_lies_about_use_are_bounded(server, usage, prompt, answer):
    server.answer = lambda body: completion("four", usage=usage)
    said = await complete(world(server), max_tokens=100)
    assert said["usage"]["prompt_tokens"] == prompt
    assert said["usage"]["answer_tokens"] == answer


async def test_a_budget_of_money_is_one_too(server):
    made = world(server, max_cost_micros=PROMPT_BYTES + 20)
    assert await refused(made, max_tokens=11) == "BUDGET_EXHAUSTED"
    said = await complete(made, max_tokens=10)
    assert said["usage"]["cost_micros"] == 18
    assert server.heard[0].body["max_tokens"] == 10


async def test_who_does_not_say_how_long_gets_what_is_left(server):
    await complete(world(server, max_tokens=PROMPT_BYTES + 7))
    assert server.heard[0].body["max_tokens"] == 7


@pytest.mark.parametrize(
    ("answer", "reason", "is_counted"),
    [
        (response(b"{}"), "ENDPOINT_INVALID", True),
        (response(b"no json"), "ENDPOINT_INVALID", True),
        (response(b'{"choices": []}'), "ENDPOINT_INVALID", True),
        (response(b"[" * 100_000), "ENDPOINT_INVALID", True),
        (response(b'{"choices": [{"message": {"content": 7}}]}'), "ENDPOINT_INVALID", True),
        (completion("x" * 600_000), "RESPONSE_TOO_LARGE", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort", "HTTP_INVALID", True),
        (b"what?\r\n\r\n", "HTTP_INVALID", True),
        (response(b"", "302 Found", "location: http://127.0.0.1:1/\r\n"), "ENDPOINT_REFUSED", False),
        (response(b"wrong key", "401 Unauthorized"), "ENDPOINT_REFUSED", False),
        (response(b"slow down", "429 Too Many Requests"), "ENDPOINT_AWAY", False),
        (response(b"oh", "503 Service Unavailable"), "ENDPOINT_AWAY", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_endpoints_that_misbehave(server, answer, reason, is_counted):
    """A call that left and has no answer that can be read counts in full, one that was refused does not."""
    server.answer = lambda body: answer
    made = world(server)
    assert await refused(made, max_tokens=10) == reason
    assert len(server.heard) == 1
    assert made.calls.conclude().llm_tokens == (PROMPT_BYTES + 10 if is_counted else 0)
    assert not made.denials


async def test_a_slow_endpoint_is_given_up_and_counted(server):
    server.never = True
    made = world(server)
    assert await refused(made, max_tokens=10, timeout_ms=200) == "TIMEOUT"
    assert made.calls.conclude().llm_tokens == PROMPT_BYTES + 10


async def test_the_operators_patience_is_the_most(server):
    server.never = True
    assert await refused(world(server, timeout=timedelta(milliseconds=200)), timeout_ms=60_000) == "TIMEOUT"


async def test_an_endpoint_that_is_away_costs_nothing(server):
    made = world(server, url="http://127.0.0.1:1/v1/")
    assert await refused(made) == "CONNECT_FAILED"
    assert made.calls.conclude().llm_tokens == 0


async def test_a_name_that_leads_to_a_private_address_is_not_called(server):
    made = world(server, url="http://models.test/v1/")
    made.resolver.name("models.test", "169.254.169.254")
    assert await refused(made) == "ADDRESS_FORBIDDEN"


async def test_a_key_goes_nowhere_else_and_nowhere_without_one(server):
    made = world(server)
    made.secrets.secrets["_operator", "llm-key"] = Secret(value=KEY, urls=(parse_url("https://a.test/"),))
    assert await refused(made) == "SECRET_NOT_FOR_URL"
    made = world(server)
    made.secrets.secrets.clear()
    assert await refused(made) == "SECRET_UNKNOWN"
    assert not server.heard


async def test_an_endpoint_that_shows_the_key_shows_it_to_nobody(server):
    server.answer = lambda body: completion(f"your key is {KEY}")
    made = world(server)
    said = await complete(made)
    assert said["message"]["content"] == "your key is [secret]"
    assert KEY.encode() not in recorded(made)
    assert made.recording[0]["scrubbed"]


async def test_a_lease_that_ran_out_asks_nobody(server):
    made = world(server)
    made.is_live = False
    assert await refused(made) == "LEASE_NOT_HELD"
    assert not server.heard


@pytest.mark.parametrize(
    "params",
    [
        {"messages": []},
        {"messages": "x"},
        {"messages": [7]},
        {"messages": [{"role": "god", "content": "x"}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"messages": [{"role": "user", "content": "x", "cache": 1}]},
        {"messages": ASK * 257},
        {"n": 2},
        {"stream": True},
        {"max_tokens": 0},
        {"timeout_ms": 600_001},
        {"model": 7},
    ],
)
async def test_requests_that_are_none(server, params):
    assert await refused(world(server), **params) == "INVALID_REQUEST"
    assert not server.heard
