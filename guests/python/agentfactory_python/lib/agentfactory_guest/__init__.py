"""What an agent written in Python may ask of its host.

An agent is a module `agent` with `def run(input, host)`; the host is given to it, never imported. Some calls
need a capability of agent.toml: without it the call raises `HostError` with the reason `NOT_GRANTED`.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import _agentfactory

__all__ = [
    "Budget", "Completion", "Host", "HostError", "Http", "Kv", "Llm", "Log", "Response", "Secret", "Tool",
    "ToolCall",
]  # fmt: skip


class HostError(Exception):
    """The host denied a call or could not carry it out; `reason` is its stable name, such as NOT_GRANTED."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


def call(method: str, params: Mapping[str, Any] | None = None) -> Any:
    """Make one host call by its name and return what it answers; the methods of `Host` are made of it.

    Raises:
        HostError: It was denied, or failed.
    """
    request = json.dumps({"method": method, "params": params or {}}, separators=(",", ":"))
    answer = json.loads(_agentfactory.call(request.encode()))
    if "error" in answer:
        raise HostError(str(answer["error"]["reason"]), str(answer["error"]["message"]))
    return answer["ok"]


@dataclass(frozen=True, slots=True)
class Secret:
    """A handle of a secret: the host puts the value into a header, the agent never sees it."""

    handle: str
    prefix: str = ""

    def with_prefix(self, prefix: str) -> "Secret":
        """Return it with a text before the value, such as `Bearer `."""
        return Secret(self.handle, prefix)


@dataclass(frozen=True, slots=True)
class Response:
    """What a server answered."""

    status: int
    url: str
    """Where redirects led."""
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def json(self) -> Any:
        """Return the body read as JSON."""
        return json.loads(self.body)


class Http:
    """HTTP requests to what `http` of agent.toml names."""

    def fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str | Secret] | None = None,
        body: bytes | str | None = None,
        json_body: Any = None,
        timeout_ms: int = 5_000,
    ) -> Response:
        """Make one request and return the answer, whatever its status.

        Raises:
            HostError: It is not granted, or there was no answer.
        """
        params: dict[str, Any] = {"method": method, "url": url, "timeout_ms": timeout_ms}
        if json_body is not None:
            body = json.dumps(json_body)
            headers = {"content-type": "application/json"} | dict(headers or {})
        params["headers"] = {name: _header(value) for name, value in (headers or {}).items()}
        if isinstance(body, str):
            params["body"] = body
        elif body is not None:
            params["body_base64"] = base64.b64encode(body).decode()
        got = call("http.fetch", params)
        return Response(
            status=got["status"],
            url=got["url"],
            headers=got["headers"],
            body=base64.b64decode(got["body_base64"]),
        )


def _header(value: str | Secret) -> Any:
    if isinstance(value, str):
        return value
    return {"secret": value.handle, "prefix": value.prefix} if value.prefix else {"secret": value.handle}


class Kv:
    """Values that the agent keeps between runs; needs `kv = true`. They count when the result is accepted."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or `default`."""
        got = call("kv.get", {"key": key})
        return json.loads(base64.b64decode(got["value_base64"])) if got["found"] else default

    def put(self, key: str, value: Any) -> None:
        """Keep a value, which is stored as JSON."""
        call("kv.put", {"key": key, "value_base64": base64.b64encode(json.dumps(value).encode()).decode()})

    def delete(self, key: str) -> None:
        """Forget a key."""
        call("kv.put", {"key": key})


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that a model may ask the agent to do; the agent does it, or does not."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments, an object."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What a model asks the agent to do. Nothing of it is checked: a model says anything."""

    id: str
    name: str
    arguments: str = field(repr=False)

    def json(self) -> Any:
        """Return the arguments read as JSON; raises ValueError where they are none."""
        return json.loads(self.arguments)

    def answer(self, content: Any) -> dict[str, Any]:
        """Return the message that tells the model what came of it; what is no text is sent as JSON."""
        text = content if isinstance(content, str) else json.dumps(content)
        return {"role": "tool", "tool_call_id": self.id, "content": text}


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model answered, what that came to, and what is left of the run's budget."""

    text: str = field(repr=False)
    """Empty where it only calls tools."""
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    message: Mapping[str, Any] = field(repr=False)
    """As it is, to be added to the messages of the next call."""
    prompt_tokens: int
    answer_tokens: int
    cost_micros: int
    left_tokens: int
    left_cost_micros: int | None
    """None: the manifest bounds the tokens alone."""


class Llm:
    """Language models that `llm` of agent.toml names, within its budget."""

    def complete(
        self,
        model: str,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        tools: Sequence[Tool] = (),
        timeout_ms: int | None = None,
        **options: Any,
    ) -> Completion:
        """Ask a model, ENDPOINT/MODEL; a text is one message of a user.

        `max_tokens` bounds the answer, 1,024 or what is left unless it is named. `options` are those of
        docs/llm.md, such as `temperature` or `response_format`.

        Raises:
            HostError: It is not granted (`NOT_GRANTED`, `MODEL_NOT_ALLOWED`), the budget has no room for it
                (`BUDGET_EXHAUSTED`), or the model gave no answer.
        """
        asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        params: dict[str, Any] = {"model": model, "messages": asked} | options
        if tools:
            params["tools"] = [{"type": "function", "function": _tool(tool)} for tool in tools]
        if max_tokens is not None:
            params["max_tokens"] = max_tokens
        if timeout_ms is not None:
            params["timeout_ms"] = timeout_ms
        return _completion(call("llm.complete", params))


def _tool(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


def _completion(got: Any) -> Completion:
    message, usage, left = got["message"], got["usage"], got["left"]
    calls = (
        ToolCall(each["id"], each["function"]["name"], each["function"]["arguments"])
        for each in message.get("tool_calls", ())
    )
    return Completion(
        text=message["content"] or "",
        tool_calls=tuple(calls),
        finish_reason=got["finish_reason"],
        message=message,
        prompt_tokens=usage["prompt_tokens"],
        answer_tokens=usage["answer_tokens"],
        cost_micros=usage["cost_micros"],
        left_tokens=left["tokens"],
        left_cost_micros=left.get("cost_micros"),
    )


class Log:
    """Lines of the execution's log, with fields. What is printed goes there too."""

    def debug(self, message: str, **fields: Any) -> None:
        """Write a line for whoever debugs."""
        _log("debug", message, fields)

    def info(self, message: str, **fields: Any) -> None:
        """Write a line."""
        _log("info", message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        """Write a line about something that should not be."""
        _log("warning", message, fields)

    def error(self, message: str, **fields: Any) -> None:
        """Write a line about something that went wrong."""
        _log("error", message, fields)


def _log(level: str, message: str, fields: Mapping[str, Any]) -> None:
    call("log", {"level": level, "message": message, "fields": dict(fields)})


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left of the run's limits, by their names; times only under profile `default`."""

    left: Mapping[str, int]

    def __getitem__(self, limit: str) -> int:
        return self.left[limit]


class Host:
    """What a run is given to reach the outside."""

    http: Final = Http()
    kv: Final = Kv()
    llm: Final = Llm()
    log: Final = Log()

    def secret(self, name: str) -> Secret:
        """Return a handle of a secret named in agent.toml, for a header of `http.fetch`.

        Raises:
            HostError: It is not granted, or the host has none of that name.
        """
        return Secret(call("secret.ref", {"name": name})["handle"])

    def budget(self) -> Budget:
        """Return what is left of the limits."""
        return Budget(call("budget.left"))

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The agent's parameters."""
        found: Mapping[str, Any] = json.loads(_agentfactory.environment("AGENTFACTORY_PARAMETERS") or "{}")
        return found

    def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Make any host call by its name; for those that have no method here yet.

        Raises:
            HostError: It was denied, or failed.
        """
        return call(method, params)
