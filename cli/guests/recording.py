"""Answers of the outside that a test brings along, so that an agent's checks run and no network is needed.

A file is a JSON list of entries, of three kinds:

* `{"method": "GET", "url": "https://…", "status": 200, "headers": {…}, "body": …}` answers a request; a body
  that is no text is sent as JSON.
* `{"model": "local/small", "content": "…"}`, or with `"tool_calls": [{"name": "…", "arguments": {…}}]`, is
  the next answer of that model.
* `{"kv": "key", "value": …}` was kept by a run before.

Every check of a node still runs before an answer is looked up.
"""

import ipaddress
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from data_plane.host_calls.domain import Refusal, refused
from data_plane.host_calls.llm import LlmEndpoint, Prices
from data_plane.host_calls.llm_complete import LlmPolicy
from data_plane.host_calls.ports import HttpRequest, HttpResponse
from data_plane.host_calls.secrets import Secret
from shared.errors import InvalidInputError
from shared.ids import TenantId
from shared.manifest import LlmCapability
from shared.urls import IpAddress, Url, parse_url

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
_SOMEWHERE: Final = ipaddress.ip_address("8.8.8.8")
"""A public address, so that the check of addresses passes; nothing connects to it."""
_MODELS_HOST: Final = ".models.invalid"
"""Where stand-ins of models are; no real host can be called so (RFC 2606)."""
_BYTES_OF_A_TOKEN: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer that was recorded."""

    method: str
    url: str
    response: HttpResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a file says of the outside of one run."""

    answers: tuple[Answer, ...]
    models: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    """By ENDPOINT/MODEL the messages that it says, one after the other."""
    kv: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Recorded":
        """Read a file of answers.

        Raises:
            InvalidInputError: It is too large, or not of that form.
        """
        try:
            data = path.read_bytes()
            if len(data) > MAX_FILE_BYTES:
                raise InvalidInputError(f"{path} has {len(data)} bytes, the bound is {MAX_FILE_BYTES}")
            entries = json.loads(data)
            models: dict[str, tuple[Mapping[str, Any], ...]] = {}
            for entry in entries:
                if "model" in entry:
                    said = models.get(entry["model"], ())
                    models[entry["model"]] = (*said, _message(entry, len(said)))
            return cls(
                answers=tuple(_answer(each) for each in entries if "url" in each),
                models=models,
                kv={str(each["kv"]): json.dumps(each["value"]).encode() for each in entries if "kv" in each},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(f"{path} is no list of recorded answers: {error!r}") from error


class Played:
    """Implements `HttpTransport` and `Resolver` for one run by what was recorded."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._asked: Counter[str] = Counter()

    async def exchange(
        self, request: HttpRequest, addresses: tuple[IpAddress, ...], *, max_body_bytes: int
    ) -> HttpResponse:
        """See `HttpTransport.exchange`."""
        del addresses
        if request.url.host.endswith(_MODELS_HOST):
            return self._completion(request)
        for answer in self._recorded.answers:
            if (answer.method, answer.url) == (request.method, str(request.url)):
                if len(answer.response.body) > max_body_bytes:
                    raise refused(Refusal.RESPONSE_TOO_LARGE, f"more than {max_body_bytes} bytes")
                return answer.response
        raise refused(Refusal.CONNECT_FAILED, f"no answer is recorded for {request.method} {request.url}")

    async def resolve(self, host: str) -> tuple[IpAddress, ...]:
        """See `Resolver.resolve`."""
        del host
        return (_SOMEWHERE,)

    def _completion(self, request: HttpRequest) -> HttpResponse:
        endpoint = request.url.host.removesuffix(_MODELS_HOST)
        model = f"{endpoint}/{json.loads(request.body)['model']}"
        said = self._recorded.models.get(model, ())
        turn = self._asked[model]
        if turn >= len(said):
            raise refused(Refusal.CONNECT_FAILED, f"no answer {turn + 1} of model {model} is recorded")
        self._asked[model] += 1
        usage = {
            "prompt_tokens": 1 + len(request.body) // _BYTES_OF_A_TOKEN,
            "completion_tokens": 1 + len(json.dumps(said[turn])) // _BYTES_OF_A_TOKEN,
        }
        reason = "tool_calls" if "tool_calls" in said[turn] else "stop"
        document = {"choices": [{"message": said[turn], "finish_reason": reason}], "usage": usage}
        return HttpResponse(status=200, headers=(), body=json.dumps(document).encode())


def stand_in_models(asked: LlmCapability | None) -> LlmPolicy:
    """Return what offers every model that a manifest asks for, for nothing, where `Played` answers."""
    names: dict[str, list[str]] = {}
    for each in asked.models if asked is not None else ():
        endpoint, _, model = each.partition("/")
        names.setdefault(endpoint, []).append(model)
    return LlmPolicy(
        endpoints={
            endpoint: LlmEndpoint(
                url=parse_url(f"https://{endpoint}{_MODELS_HOST}/v1/chat/completions"),
                models={model: Prices() for model in models},
            )
            for endpoint, models in names.items()
        }
    )


def _message(entry: Mapping[str, Any], turn: int) -> Mapping[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": entry.get("content")}
    if calls := entry.get("tool_calls"):
        message["tool_calls"] = [
            {
                "id": f"call-{turn + 1}-{number}",
                "type": "function",
                "function": {"name": str(call["name"]), "arguments": json.dumps(call["arguments"])},
            }
            for number, call in enumerate(calls, 1)
        ]
    return message


def _answer(entry: dict[str, Any]) -> Answer:
    body = entry.get("body", "")
    text = body if isinstance(body, str) else json.dumps(body)
    headers = {"content-type": "application/json"} | dict(entry.get("headers", {}))
    return Answer(
        method=str(entry.get("method", "GET")),
        url=str(entry["url"]),
        response=HttpResponse(
            status=int(entry.get("status", 200)),
            headers=tuple((str(name).lower(), str(value)) for name, value in headers.items()),
            body=text.encode(),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StandInSecrets:
    """Implements `SecretStore`: each name has a value that opens nothing, for wherever the agent may call."""

    urls: tuple[Url, ...]

    async def find(self, tenant_id: TenantId, name: str) -> Secret | None:
        """See `SecretStore.find`."""
        del tenant_id
        return Secret(value=f"stand-in-for-{name}", urls=self.urls)
