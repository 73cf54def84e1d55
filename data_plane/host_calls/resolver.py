"""Names by the system's resolver, in threads of its own. Judges no address."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Final

from data_plane.host_calls.domain import Refusal, refused
from shared.urls import IpAddress

MAX_ADDRESSES: Final = 16
MAX_LOOKUPS: Final = 16
"""At once; a lookup cannot be stopped, so slow names must not take the threads of everybody else: a name that
is looked up already has a thread, however often it is asked for."""


class SystemResolver:
    """Implements `Resolver` with getaddrinfo: /etc/hosts and DNS, as the operator has set them up."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="resolver")
        self._open: dict[str, asyncio.Future[list[str]]] = {}

    def close(self) -> None:
        """Start no lookup any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, host: str) -> tuple[IpAddress, ...]:
        """See `Resolver.resolve`."""
        try:
            found = await asyncio.shield(self._looked_up(host))
        except (OSError, UnicodeError) as error:
            raise refused(Refusal.NAME_NOT_RESOLVED, f"{host} is not resolved: {error}") from error
        # An address with a zone belongs to a link of this machine: without the zone it is refused further on.
        texts = dict.fromkeys(text.partition("%")[0] for text in found)
        addresses = tuple(map(ip_address, texts))[:MAX_ADDRESSES]
        if not addresses:
            raise refused(Refusal.NAME_NOT_RESOLVED, f"{host} has no address")
        return addresses

    def _looked_up(self, host: str) -> "asyncio.Future[list[str]]":
        known = self._open.get(host)
        if known is not None:
            return known
        lookup = asyncio.get_running_loop().run_in_executor(self._threads, _addresses_of, host)
        self._open[host] = lookup
        lookup.add_done_callback(lambda ended: self._ended(host, ended))
        return lookup

    def _ended(self, host: str, lookup: "asyncio.Future[list[str]]") -> None:
        del self._open[host]
        if not lookup.cancelled():
            lookup.exception()  # whoever asked may have gone away


def _addresses_of(host: str) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
