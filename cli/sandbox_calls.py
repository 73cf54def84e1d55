"""What guests of `agentfactory sandbox run` may ask for: a node's checks, under rules of the command line."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from prometheus_client import CollectorRegistry

from data_plane.host_calls.addresses import IpNetwork, parse_networks
from data_plane.host_calls.domain import CallContext
from data_plane.host_calls.http_client import DirectHttp, make_tls
from data_plane.host_calls.http_fetch import ANY_METHOD, AllowedHttp, HttpPolicy
from data_plane.host_calls.llm_complete import LlmPolicy
from data_plane.host_calls.ports import HttpTransport, Resolver, SecretStore
from data_plane.host_calls.resolver import SystemResolver
from data_plane.host_calls.secrets_file import NoSecrets, SecretsFile
from data_plane.host_calls.service import AttemptCalls, HostCallParts
from data_plane.metrics import NodeMetrics
from data_plane.orders.domain import AttemptRef
from data_plane.sandbox.domain import RunRequest
from shared.clock import SystemClock, SystemRandom
from shared.errors import HostCallRefusedError, InvalidInputError
from shared.ids import ExecutionId, TenantId
from shared.manifest import HTTP_METHODS, Capabilities, HttpCapability, Profile

TENANT: Final = TenantId("default")
"""Whose secrets of a file are meant: that of an installation with one tenant."""
_ATTEMPT: Final = AttemptRef(execution_id=ExecutionId("exe_local"), attempt_number=1, fencing_token=1)
_KEY_BYTES: Final = 32


class Outside(HttpTransport, Resolver, Protocol):
    """Names and connections that are somebody's own."""


@dataclass(frozen=True, slots=True)
class _OneRun:
    """Implements `KvStore` and `UnsafeIntents` where only this was before the run and nobody repeats it."""

    kept: Mapping[str, bytes]

    async def get(self, attempt: AttemptRef, key: str) -> bytes | None:  # noqa: ARG002 - the port's
        """See `KvStore.get`."""
        return self.kept.get(key)

    async def declare(self, attempt: AttemptRef) -> None:
        """See `UnsafeIntents.declare`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRules:
    """What the command line allows; it stands for the template, the order and the node's operator at once."""

    allowed: tuple[AllowedHttp, ...] = ()
    networks: tuple[IpNetwork, ...] = ()
    secrets: SecretStore
    secret_names: tuple[str, ...] = ()
    granted: Capabilities | None = None
    """What a manifest asks for, in place of all that is allowed."""
    outside: "Outside | None" = None
    """Who answers in place of the network."""
    llm: LlmPolicy = field(default_factory=LlmPolicy)
    kv: Mapping[str, bytes] = field(default_factory=dict)
    """What runs before have kept."""

    @classmethod
    def read(cls, http: Sequence[str], networks: Sequence[str], secrets_file: Path | None) -> "CallRules":
        """Read what was named.

        Raises:
            InvalidInputError: Something is not of its form.
            NotFoundError, KeyFileModeError, KeyFormatError: As `SecretsFile.load`.
        """
        secrets: SecretStore = NoSecrets()
        names: tuple[str, ...] = ()
        if secrets_file is not None:
            secrets = file = SecretsFile(secrets_file)
            file.load()
            names = file.names(TENANT)
        try:
            found = parse_networks(networks)
        except ValueError as error:
            raise InvalidInputError(f"--allow-network: {error}") from error
        return cls(allowed=tuple(map(_allowed, http)), networks=found, secrets=secrets, secret_names=names)

    @property
    def capabilities(self) -> Capabilities:
        """What an order would grant."""
        if self.granted is not None:
            return self.granted
        networks = tuple(map(str, self.networks))
        return Capabilities(
            http=tuple(
                HttpCapability(method=method, url=str(one.prefix), addresses=networks)
                for one in self.allowed
                for method in (sorted(HTTP_METHODS) if one.method == ANY_METHOD else (one.method,))
            ),
            kv=True,
            secrets=self.secret_names,
        )

    @contextmanager
    def calls_of(self, request: RunRequest) -> Iterator[AttemptCalls]:
        """Answer the host calls of one run within."""
        resolver, alone = SystemResolver(), _OneRun(self.kv)
        capabilities = self.capabilities
        parts = HostCallParts(
            policy=HttpPolicy(allowed=self.allowed, networks=self.networks),
            transport=self.outside or _network(),
            resolver=self.outside or resolver,
            intents=alone,
            kv=alone,
            secrets=self.secrets,
            llm=self.llm,
            metrics=_metrics(),
        )
        context = CallContext(
            attempt=_ATTEMPT,
            tenant_id=TENANT,
            capabilities=capabilities,
            grants=frozenset(capabilities.host_call_grants),
            limits=request.limits,
            is_repeatable=request.profile is not Profile.DEFAULT,
            key=request.seed or SystemRandom().token_bytes(_KEY_BYTES),
        )
        try:
            yield parts.begin(context, lambda: True)
        finally:
            resolver.close()


@cache
def _network() -> DirectHttp:
    # The roots of the system are read once for all runs: that takes longer than most of them.
    return DirectHttp(make_tls(None))


@cache
def _metrics() -> NodeMetrics:
    # Once for all runs, as on a node: the first call of a method makes its numbers while a guest waits.
    return NodeMetrics(CollectorRegistry(), SystemClock())


def _allowed(text: str) -> AllowedHttp:
    try:
        return AllowedHttp.parse(text)
    except (ValueError, HostCallRefusedError) as error:
        raise InvalidInputError(
            f"--allow-http {text[:200]!r} is not METHOD URL, such as 'GET https://a.test/v1/': {error}"
        ) from error
