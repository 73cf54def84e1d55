"""Language models of one run: who may be asked, what counts as used, what is left. No I/O, no clock.

An endpoint is not believed: what counts is bounded by what was asked of it and by the bytes that went over
the wire, so that it can make a run look neither free nor dearer than its budget.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from data_plane.host_calls.domain import Params, Refusal, refused
from shared.canonical import JsonObject
from shared.manifest import LlmCapability
from shared.urls import Url

MAX_MESSAGES: Final = 256
MAX_TOOL_CALLS: Final = 64
MAX_ANSWER_TOKENS: Final = 1_000_000
DEFAULT_ANSWER_TOKENS: Final = 1024
BYTES_OF_A_LONG_TOKEN: Final = 64
"""So many bytes are at least one token, whatever an endpoint says; every token is at least one byte."""
MAX_TIMEOUT: Final = timedelta(minutes=10)
OPERATOR: Final = "_operator"
"""In place of a tenant: whose key it is when the operator pays. No tenant can be called so."""
_MILLION: Final = 1_000_000
_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool"})
_MESSAGE_FIELDS: Final = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
_OPTIONS: Final = (
    "temperature",
    "top_p",
    "seed",
    "stop",
    "tools",
    "tool_choice",
    "response_format",
    "presence_penalty",
    "frequency_penalty",
)
"""Passed on as they are. Not `n`, which multiplies what is paid, and nothing else that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Of one model, in millionths of the operator's currency for a million tokens."""

    prompt: int = 0
    answer: int = 0

    def cost(self, prompt_tokens: int, answer_tokens: int) -> int:
        """Return the cost in millionths, rounded up."""
        return -(-(prompt_tokens * self.prompt + answer_tokens * self.answer) // _MILLION)

    def affordable(self, prompt_tokens: int, cost: int) -> int:
        """Return how many tokens of an answer `cost` pays for after the prompt."""
        if not self.answer:
            return MAX_ANSWER_TOKENS if self.cost(prompt_tokens, 0) <= cost else 0
        return (cost * _MILLION - prompt_tokens * self.prompt) // self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmEndpoint:
    """A server that the node's operator named, speaking the chat completions of OpenAI."""

    url: Url
    """Of the completions themselves."""
    models: Mapping[str, Prices]
    secret: str | None = None
    """Name of its key; None: it needs none."""
    is_key_of_tenant: bool = False
    timeout: timedelta = timedelta(seconds=60)
    bound_field: str = "max_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One call as the guest asked it, checked."""

    endpoint: str
    model: str
    prompt: Mapping[str, Any] = field(repr=False)
    """Messages and options, as they are sent."""
    max_tokens: int | None
    timeout: timedelta | None

    @property
    def prompt_bytes(self) -> int:
        """As many bytes as it is, and at most as many tokens."""
        return len(_dump(self.prompt))

    def body(self, max_tokens: int, bound_field: str) -> bytes:
        """Return what is sent."""
        return _dump({"model": self.model, **self.prompt, bound_field: max_tokens, "stream": False})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an endpoint said, as far as it is believed."""

    message: JsonObject = field(repr=False)
    finish_reason: str
    prompt_tokens: object
    answer_tokens: object
    """As reported: anything."""


@dataclass(slots=True, kw_only=True)
class Budget:
    """What one run may use and has used: a call takes its most before it leaves, the rest comes back."""

    capability: LlmCapability
    tokens: int = 0
    cost_micros: int = 0

    @property
    def left(self) -> dict[str, object]:
        """What guests are told; without a bound on the cost nothing is said of it."""
        left: dict[str, object] = {"tokens": self.capability.max_tokens - self.tokens}
        if self.capability.max_cost_micros:
            left["cost_micros"] = self.capability.max_cost_micros - self.cost_micros
        return left

    def take(self, completion: Completion, prices: Prices) -> "Taken":
        """Take the most that a call can come to: a token for every byte of the prompt, and its answer.

        Raises:
            HostCallRefusedError: There is no room for it (`BUDGET_EXHAUSTED`).
        """
        prompt = completion.prompt_bytes
        room = self.capability.max_tokens - self.tokens - prompt
        if self.capability.max_cost_micros:
            room = min(room, prices.affordable(prompt, self.capability.max_cost_micros - self.cost_micros))
        wanted = completion.max_tokens or max(1, min(DEFAULT_ANSWER_TOKENS, room))
        if wanted > room:
            raise refused(
                Refusal.BUDGET_EXHAUSTED,
                f"a prompt of {prompt} bytes leaves room for {max(0, room)} tokens of an answer",
            )
        taken = Taken(prompt_tokens=prompt, answer_tokens=wanted, prices=prices)
        self._add(taken, 1)
        return taken

    def give_back(self, taken: "Taken") -> None:
        """Count a call that never reached the model as none."""
        self._add(taken, -1)

    def settle(self, taken: "Taken", used: "Taken") -> None:
        """Count what a call came to instead of the most that it could."""
        self._add(taken, -1)
        self._add(used, 1)

    def _add(self, taken: "Taken", sign: int) -> None:
        self.tokens += sign * (taken.prompt_tokens + taken.answer_tokens)
        self.cost_micros += sign * taken.cost_micros


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Tokens of one call, and what they cost."""

    prompt_tokens: int
    answer_tokens: int
    prices: Prices

    @property
    def cost_micros(self) -> int:
        return self.prices.cost(self.prompt_tokens, self.answer_tokens)

    def counted(self, answer: Answer) -> "Taken":
        """Return what counts of what an endpoint reports: within bounds; as bounded where it says nothing."""
        return Taken(
            prompt_tokens=_within(
                answer.prompt_tokens, 1 + self.prompt_tokens // BYTES_OF_A_LONG_TOKEN, self.prompt_tokens
            ),
            answer_tokens=_within(answer.answer_tokens, _least(answer.message), self.answer_tokens),
            prices=self.prices,
        )


def read_completion(params: Params) -> Completion:
    """Take the parameters of `llm.complete`.

    Raises:
        HostCallRefusedError: They are not of the form that docs/llm.md says.
    """
    endpoint, _, model = params.text("model", max_chars=192).partition("/")
    messages = params.objects("messages", max_items=MAX_MESSAGES)
    for message in messages:
        _check_message(message)
    options = {name: params.raw(name) for name in _OPTIONS if params.has(name)}
    max_tokens = (
        params.integer("max_tokens", minimum=1, maximum=MAX_ANSWER_TOKENS)
        if params.has("max_tokens")
        else None
    )
    most = int(MAX_TIMEOUT / timedelta(milliseconds=1))
    timeout = params.integer("timeout_ms", minimum=1, maximum=most) if params.has("timeout_ms") else None
    params.end()
    return Completion(
        endpoint=endpoint,
        model=model,
        prompt={"messages": messages, **options},
        max_tokens=max_tokens,
        timeout=timedelta(milliseconds=timeout) if timeout else None,
    )


def read_answer(body: bytes) -> Answer:
    """Return what is in the body of an endpoint's answer; what is not known in it is left out.

    Raises:
        HostCallRefusedError: It is no chat completion (`ENDPOINT_INVALID`). Nothing of it is repeated.
    """
    try:
        document = json.loads(body)
        choice = document["choices"][0]
        message = _read_message(choice["message"])
        finish = choice.get("finish_reason") or ""
        usage = document.get("usage") or {}
        if not isinstance(finish, str) or not isinstance(usage, dict):
            raise TypeError  # noqa: TRY301 - one answer for all
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise refused(Refusal.ENDPOINT_INVALID, "the endpoint's answer is no chat completion") from error
    return Answer(
        message=message,
        finish_reason=finish[:64],
        prompt_tokens=usage.get("prompt_tokens"),
        answer_tokens=usage.get("completion_tokens"),
    )


def require_status(status: int) -> None:
    """Refuse what is no answer of a model.

    Raises:
        HostCallRefusedError: The endpoint is busy or broken (`ENDPOINT_AWAY`), or refuses: a redirect,
            which is never followed, a wrong key, a request that it does not understand (`ENDPOINT_REFUSED`).
    """
    if status == 200:  # noqa: PLR2004 - the one that the protocol knows
        return
    if status == 429 or status >= 500:  # noqa: PLR2004 - RFC 9110, section 15.6, and RFC 6585, section 4
        raise refused(Refusal.ENDPOINT_AWAY, f"the endpoint answers {status}; try again later")
    raise refused(Refusal.ENDPOINT_REFUSED, f"the endpoint answers {status}")


def _check_message(message: JsonObject) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES or not message.keys() <= _MESSAGE_FIELDS:
        raise refused(
            Refusal.INVALID_REQUEST,
            f"a message has a role of {', '.join(sorted(_ROLES))}; {', '.join(sorted(_MESSAGE_FIELDS))} only",
        )
    if content is not None and not isinstance(content, str | list):
        raise refused(Refusal.INVALID_REQUEST, "content of a message is no text and no list of parts")


def _read_message(said: JsonObject) -> JsonObject:
    content = said.get("content")
    if content is not None and not isinstance(content, str):
        raise TypeError
    message: JsonObject = {"role": "assistant", "content": content}
    calls = said.get("tool_calls") or []
    if not isinstance(calls, list) or len(calls) > MAX_TOOL_CALLS:
        raise TypeError
    if calls:
        message["tool_calls"] = [_read_tool_call(call) for call in calls]
    return message


def _read_tool_call(call: JsonObject) -> JsonObject:
    function = call["function"]
    texts = (call["id"], function["name"], function["arguments"])
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    named = {"name": texts[1], "arguments": texts[2]}
    return {"id": texts[0], "type": "function", "function": named}


def _least(message: JsonObject) -> int:
    """Return how many tokens an answer has at least."""
    return 1 + len(_dump(message)) // BYTES_OF_A_LONG_TOKEN


def _within(reported: object, least: int, most: int) -> int:
    if type(reported) is not int:
        return most
    return min(max(reported, least), most)


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
