"""`llm.complete`: every check, one exchange with an endpoint of the operator's, and what it counts for."""

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

from data_plane.host_calls.addresses import IpNetwork, is_allowed
from data_plane.host_calls.domain import Call, CallContext, Params, Refusal, refused
from data_plane.host_calls.http_fetch import IDEMPOTENCY_HEADER
from data_plane.host_calls.llm import (
    OPERATOR,
    Budget,
    Completion,
    LlmEndpoint,
    Taken,
    read_answer,
    read_completion,
    require_status,
)
from data_plane.host_calls.ports import HttpRequest, HttpTransport, Resolver, SecretStore
from data_plane.host_calls.secrets import Scrubber
from shared.errors import HostCallRefusedError
from shared.ids import TenantId
from shared.manifest import LlmCapability
from shared.urls import IpAddress, Url

MAX_ANSWER_BYTES: Final = 512 * 1024
"""Of an endpoint's body: in JSON it fits an answer."""
MAX_ADDRESSES: Final = 4
NO_LLM: Final = LlmCapability(models=(), max_tokens=0)
_NOT_PAID: Final = frozenset(
    {Refusal.CONNECT_FAILED, Refusal.TLS_FAILED, Refusal.ENDPOINT_AWAY, Refusal.ENDPOINT_REFUSED}
)
"""No model was reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmPolicy:
    """What the node's operator offers to agents, whatever orders grant. Nothing by default."""

    endpoints: Mapping[str, LlmEndpoint] = field(default_factory=dict)
    networks: tuple[IpNetwork, ...] = ()
    """Beside public addresses, in which the names of endpoints may be."""
    max_tokens: int | None = None
    """Of one run, whatever its order grants."""


class LlmCompleter:
    """The language models of one run.

    In this order; the first that fails is the answer:

    1. The method is granted at all (the caller's part).
    2. The order's capability names the model.
    3. The node's operator offers it.
    4. The endpoint's key is there and may go to it.
    5. Every address of the endpoint is public, in a network of the operator's, or the one that it wrote.
    6. The lease is live.
    7. The budget has room for the most that the call can come to, which is taken.

    Nothing is followed. What was taken is given back when no model was reached; a call that left and has no
    answer that can be read counts in full.
    """

    def __init__(
        self,
        *,
        context: CallContext,
        policy: LlmPolicy,
        transport: HttpTransport,
        resolver: Resolver,
        secrets: SecretStore,
        is_lease_live: Callable[[], bool],
    ) -> None:
        self._context = context
        self._policy = policy
        self._transport = transport
        self._resolver = resolver
        self._secrets = secrets
        self._is_lease_live = is_lease_live
        self._scrubber = Scrubber()
        self._budget = Budget(capability=_capped(context.capabilities.llm or NO_LLM, policy))
        self.has_scrubbed = False
        """Whether the last answer held the endpoint's key."""

    @property
    def tokens(self) -> int:
        """Used so far, or taken by a call that has no answer yet."""
        return self._budget.tokens

    @property
    def cost_micros(self) -> int:
        """What they cost."""
        return self._budget.cost_micros

    def scrub_text(self, text: str) -> str:
        """Take the endpoint's key out of a message."""
        return self._scrubber.scrub_text(text)

    async def complete(self, call: Call) -> dict[str, object]:
        """Carry out one call.

        Raises:
            HostCallRefusedError: A check failed, or the exchange did.
            UnavailableError: The secrets cannot be read now.
        """
        self.has_scrubbed = False
        completion = read_completion(Params(call.params))
        endpoint = self._endpoint(completion)
        headers = await self._headers(call, endpoint)
        addresses = await self._addresses(endpoint.url)
        if not self._is_lease_live():
            raise refused(Refusal.LEASE_NOT_HELD, "the attempt's lease has run out")
        prices = endpoint.models[completion.model]
        taken = self._budget.take(completion, prices)
        body = completion.body(taken.answer_tokens, endpoint.bound_field)
        request = HttpRequest(method="POST", url=endpoint.url, headers=headers, body=body)
        bound = min(completion.timeout or endpoint.timeout, endpoint.timeout)
        answer = read_answer(await self._exchange(request, addresses, taken, bound))
        used = taken.counted(answer)
        self._budget.settle(taken, used)
        return {
            "model": f"{completion.endpoint}/{completion.model}",
            "message": answer.message,
            "finish_reason": answer.finish_reason,
            "usage": {
                "prompt_tokens": used.prompt_tokens,
                "answer_tokens": used.answer_tokens,
                "cost_micros": used.cost_micros,
            },
            "left": self._budget.left,
        }

    async def _exchange(
        self, request: HttpRequest, addresses: tuple[IpAddress, ...], taken: Taken, bound: timedelta
    ) -> bytes:
        try:
            async with asyncio.timeout(bound.total_seconds()):
                response = await self._transport.exchange(request, addresses, max_body_bytes=MAX_ANSWER_BYTES)
            require_status(response.status)
        except TimeoutError as error:
            raise refused(Refusal.TIMEOUT, f"no complete answer within {bound}") from error
        except HostCallRefusedError as error:
            if error.refusal in _NOT_PAID:
                self._budget.give_back(taken)
            raise
        body = self._scrubber.scrub(response.body)
        self.has_scrubbed = body != response.body
        return body

    def _endpoint(self, completion: Completion) -> LlmEndpoint:
        """Checks 2 and 3."""
        name = f"{completion.endpoint}/{completion.model}"
        if name not in self._budget.capability.models:
            raise refused(Refusal.MODEL_NOT_ALLOWED, f"the template does not ask for model {name[:192]}")
        endpoint = self._policy.endpoints.get(completion.endpoint)
        if endpoint is None or completion.model not in endpoint.models:
            raise refused(Refusal.NOT_ALLOWED_HERE, f"this node does not offer model {name}")
        return endpoint

    async def _headers(self, call: Call, endpoint: LlmEndpoint) -> tuple[tuple[str, str], ...]:
        """Check 4."""
        text = f"llm\0{call.index}\0{call.digest}".encode()
        key = hmac.new(self._context.key, text, hashlib.sha256).hexdigest()
        headers = (
            ("content-type", "application/json"),
            ("accept", "application/json"),
            (IDEMPOTENCY_HEADER, key),
        )
        if endpoint.secret is None:
            return headers
        owner = self._context.tenant_id if endpoint.is_key_of_tenant else TenantId(OPERATOR)
        secret = await self._secrets.find(owner, endpoint.secret)
        if secret is None:
            raise refused(Refusal.SECRET_UNKNOWN, "this node has no key for the endpoint")
        if not secret.may_go_to(endpoint.url):
            raise refused(Refusal.SECRET_NOT_FOR_URL, "the endpoint's key may not go to it")
        self._scrubber.add(secret.value)
        return (*headers, ("authorization", f"Bearer {secret.value}"))

    async def _addresses(self, url: Url) -> tuple[IpAddress, ...]:
        """Check 5."""
        if url.address is not None:
            return (url.address,)
        addresses = await self._resolver.resolve(url.host)
        if not addresses or not all(is_allowed(one, self._policy.networks) for one in addresses):
            raise refused(
                Refusal.ADDRESS_FORBIDDEN, "the endpoint's name has an address that is not allowed here"
            )
        return addresses[:MAX_ADDRESSES]


def _capped(capability: LlmCapability, policy: LlmPolicy) -> LlmCapability:
    most = policy.max_tokens
    return capability if most is None else replace(capability, max_tokens=min(capability.max_tokens, most))
