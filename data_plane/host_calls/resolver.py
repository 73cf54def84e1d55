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
"""At once; a lookup cannot be stopped, so slow names must not take the threads of everybody else."""


class SystemResolver:
    """Implements `Resolver` with getaddrinfo: /etc/hosts and DNS, as the operator has set them up."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="resolver")

    def close(self) -> None:
        """Start no lookup any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, host: str) -> tuple[IpAddress, ...]:
        """See `Resolver.resolve`."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._threads, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError) as error:
            raise refused(Refusal.NAME_NOT_RESOLVED, f"{host} is not resolved: {error}") from error
        # An address with a zone belongs to a link of this machine: without the zone it is refused further on.
        texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
        addresses = tuple(map(ip_address, texts))[:MAX_ADDRESSES]
        if not addresses:
            raise refused(Refusal.NAME_NOT_RESOLVED, f"{host} has no address")
        return addresses
