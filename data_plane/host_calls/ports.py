"""What host calls need from outside: the control plane's word, names, connections and secrets."""

from dataclasses import dataclass, field
from typing import Protocol

from data_plane.host_calls.secrets import Secret
from data_plane.orders.domain import AttemptRef
from shared.ids import TenantId
from shared.urls import IpAddress, Url


class KvStore(Protocol):
    """The committed values that an agent keeps between its runs."""

    async def get(self, attempt: AttemptRef, key: str) -> bytes | None:
        """Return the committed value of a key of the attempt's agent; None when it has none.

        Raises:
            HostCallRefusedError: The attempt's lease is not held any more, or there are too many calls.
            UnavailableError: The control plane cannot be asked now.
        """
        ...


class UnsafeIntents(Protocol):
    """Announces that an attempt is about to have an effect outside (design.md, rule 6)."""

    async def declare(self, attempt: AttemptRef) -> None:
        """Return once it is on record that the attempt makes an unsafe call; a repeat changes nothing.

        Raises:
            HostCallRefusedError: The attempt's lease is not held any more, or there are too many calls.
            UnavailableError: The control plane cannot be asked now.
        """
        ...


class Resolver(Protocol):
    """Finds the addresses of a name."""

    async def resolve(self, host: str) -> tuple[IpAddress, ...]:
        """Return at least one address, and not more than 16.

        Raises:
            HostCallRefusedError: The name has none, or nobody knows (`NAME_NOT_RESOLVED`).
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One request as it is sent, secrets included: never logged, never recorded."""

    method: str
    url: Url
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    """Without Host, length and connection: those are the transport's."""
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResponse:
    """One response as it came, its content encoding untouched."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)


class HttpTransport(Protocol):
    """Makes one HTTP exchange on a connection of its own."""

    async def exchange(
        self, request: HttpRequest, addresses: tuple[IpAddress, ...], *, max_body_bytes: int
    ) -> HttpResponse:
        """Connect to the first of `addresses` that answers and to nothing else; exchange one message each.

        Over TLS the peer has to prove the name in the URL. Follows nothing, keeps nothing. The caller bounds
        the time by cancelling.

        Raises:
            HostCallRefusedError: No connection (`CONNECT_FAILED`), no proof (`TLS_FAILED`), a body above
                `max_body_bytes` (`RESPONSE_TOO_LARGE`), not HTTP (`HTTP_INVALID`).
        """
        ...


class SecretStore(Protocol):
    """Where the secrets of tenants are."""

    async def find(self, tenant_id: TenantId, name: str) -> Secret | None:
        """Return a secret of a tenant as it is now; None when there is none.

        Raises:
            UnavailableError: The store cannot be read now.
        """
        ...
