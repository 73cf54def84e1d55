"""Asks OPA servers over HTTP. Gives them nothing: each gets its bundle in OPA's own way, and says which.

An answer counts only if the server names the digest of the bundle in force as its revision in that answer.
With several servers a bundle changes without a gap: one gets the new one, it is activated, the others follow.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx

from control_plane.policy.domain import PACKAGE, Evaluation, PolicyBundle
from shared.digests import Digest
from shared.errors import PolicyUndecidedError, UnavailableError
from shared.rego import inspect_rego

MAX_ANSWER_BYTES: Final = 1024 * 1024
MAX_CONNECTIONS: Final = 64
LOAD_SECONDS: Final = 5.0
"""For all servers together, when a bundle is taken into use; a server that has just started is slow."""

_PARAMETERS: Final = {"provenance": "true", "strict-builtin-errors": "true"}
_NOTHING: Final = f"data.{PACKAGE}.nothing_has_this_name"
"""Asked to learn the revision alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    revisions: frozenset[str]
    value_json: str | None
    """None: undefined."""
    decision_id: str


class TokenFile(httpx.Auth):
    """A bearer token out of a file, read again when a server refuses it: it may have been renewed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = path.read_text().strip()

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """See `httpx.Auth`."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        response = yield request
        if response.status_code == httpx.codes.UNAUTHORIZED:
            self._token = (await asyncio.to_thread(self._path.read_text)).strip()
            request.headers["Authorization"] = f"Bearer {self._token}"
            yield request


class OpaPolicyEngine:
    """Implements `PolicyEngine`."""

    name = "opa"

    def __init__(self, servers: "OpaPolicyEngines", *, digest: Digest, is_pure: bool) -> None:
        self._servers = servers
        self._digest = digest
        self._is_pure = is_pure

    @property
    def digest(self) -> Digest:
        """See `PolicyEngine.digest`."""
        return self._digest

    @property
    def is_pure(self) -> bool:
        """See `PolicyEngine.is_pure`."""
        return self._is_pure

    async def evaluate(self, rule: str, input_json: str) -> Evaluation:
        """See `PolicyEngine.evaluate`."""
        answer = await self._servers.ask(self._digest, rule, input_json)
        if answer.value_json is None:
            raise PolicyUndecidedError(f"{rule} is undefined for this input")
        return Evaluation(value_json=answer.value_json, engine_decision_id=answer.decision_id)


class OpaPolicyEngines:
    """Implements `PolicyEngines`. Close it."""

    takes_anything = False

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout: timedelta,
        token: TokenFile | None = None,
        ca_file: Path | None = None,
    ) -> None:
        # httpx tells of every request at "info": that is what decisions and the servers' own logs are for.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._urls = [url.rstrip("/") for url in urls]
        self._timeout_seconds = timeout.total_seconds()
        # Proxies and certificates of the environment are not asked: settings alone say who decides.
        self._client = httpx.AsyncClient(
            auth=token,
            verify=str(ca_file) if ca_file else True,
            trust_env=False,
            timeout=LOAD_SECONDS,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        )

    async def load(self, bundle: PolicyBundle) -> OpaPolicyEngine:
        """See `PolicyEngines.load`. The server compiled the bundle when it took it.

        Raises:
            UnavailableError: No server serves this bundle.
        """
        try:
            await self.ask(bundle.digest, _NOTHING, "{}", timeout_seconds=LOAD_SECONDS)
        except PolicyUndecidedError as error:
            raise UnavailableError(
                f"no OPA server serves the policy {bundle.digest}: {error}",
                hint="give one of them the file that 'agentfactory policy export' writes, then try again",
            ) from error
        report = await asyncio.to_thread(inspect_rego, bundle.files, json.loads(bundle.data_json))
        return OpaPolicyEngine(self, digest=bundle.digest, is_pure=report.is_pure)

    async def ask(
        self, digest: Digest, rule: str, input_json: str, *, timeout_seconds: float | None = None
    ) -> _Answer:
        """Return the first answer of a server that serves the bundle; all have the time-out together.

        A server that did not is asked last the next time.

        Raises:
            PolicyUndecidedError: None serves it, answers in time, or answers as OPA does.
        """
        seconds = timeout_seconds or self._timeout_seconds
        failures = []
        try:
            async with asyncio.timeout(seconds):
                for url in tuple(self._urls):
                    try:
                        return await self._ask_one(url, digest, rule, input_json)
                    except (httpx.HTTPError, PolicyUndecidedError) as error:
                        failures.append(f"{url}: {error or type(error).__name__}")
                        self._put_last(url)
        except TimeoutError:
            self._put_last(url)
            failures.append(f"{url}: no answer within {seconds * 1000:.0f} ms")
        raise PolicyUndecidedError("; ".join(failures))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _put_last(self, url: str) -> None:
        self._urls.sort(key=lambda other: other == url)

    async def _ask_one(self, url: str, digest: Digest, rule: str, input_json: str) -> _Answer:
        path = rule.removeprefix("data.").replace(".", "/")
        request = self._client.build_request(
            "POST",
            f"{url}/v1/data/{path}",
            params=_PARAMETERS,
            content=f'{{"input":{input_json}}}',
            headers={"Content-Type": "application/json"},
        )
        response = await self._client.send(request, stream=True)
        try:
            content = await _bounded(response)
        finally:
            await response.aclose()
        if response.status_code != httpx.codes.OK:
            raise PolicyUndecidedError(f"status {response.status_code}: {_message(content)}")
        answer = _answer_of(content)
        if digest not in answer.revisions:
            raise PolicyUndecidedError(f"it serves {', '.join(sorted(answer.revisions)) or 'no bundle'}")
        return answer


async def _bounded(response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise PolicyUndecidedError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _message(content: bytes) -> str:
    """What OPA says of an error, without the input that it may quote at length."""
    try:
        answer = json.loads(content)
        details = [str(error["message"]) for error in answer.get("errors") or []]
        return "; ".join([str(answer["message"]), *details])[:500]
    except (ValueError, TypeError, KeyError, AttributeError):
        return "no error of OPA"


def _answer_of(content: bytes) -> _Answer:
    try:
        answer: Any = json.loads(content)
        bundles = answer["provenance"].get("bundles", {})
        return _Answer(
            revisions=frozenset(str(bundle["revision"]) for bundle in bundles.values()),
            value_json=json.dumps(answer["result"]) if "result" in answer else None,
            decision_id=str(answer.get("decision_id", ""))[:128],
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PolicyUndecidedError("the answer is not one of OPA with provenance") from error
