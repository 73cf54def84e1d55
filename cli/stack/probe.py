"""Asks a process of this machine whether it is ready, and whether a port is free. Nothing else of HTTP."""

import asyncio
import random
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from cli.stack.children import Child
from shared.errors import PortInUseError, UnavailableError

PROBE_TIMEOUT: Final = timedelta(seconds=2)
POLL: Final = timedelta(milliseconds=25)
MAX_ANSWER_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: str


async def get(port: int, path: str) -> Answer | None:
    """Return what an admin server on loopback says; None when nobody answers in time."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT.total_seconds()):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                head, _, body = (
                    (await reader.read())[:MAX_ANSWER_BYTES].decode(errors="replace").partition("\r\n\r\n")
                )
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    words = head.split(" ", 2)
    if len(words) < 2 or not words[1].isdigit():  # noqa: PLR2004 - "HTTP/1.1 200 OK"
        return None
    return Answer(status=int(words[1]), body=body.strip())


async def wait_until_ready(child: Child, port: int, *, within: timedelta) -> None:
    """Return when the child's ``/readyz`` says 200.

    Raises:
        UnavailableError: It died, or is not ready within the bound; the message says why.
    """
    answer: Answer | None = None
    try:
        async with asyncio.timeout(within.total_seconds()):
            while answer is None or answer.status != 200:  # noqa: PLR2004 - HTTP's OK
                if not child.is_running:
                    raise child.died()
                await asyncio.sleep(POLL.total_seconds())
                answer = await get(port, "/readyz")
    except TimeoutError as error:
        said = answer.body[:200] if answer is not None else "no answer"
        raise UnavailableError(
            f"{child.spec.name} is not ready after {within.total_seconds():g} s: {said}",
            hint=f"its log is {child.spec.log}",
        ) from error


def require_free(port: int) -> None:
    """Refuse a port that is taken, before anything was started.

    Raises:
        PortInUseError: Another process listens on it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortInUseError(
                f"port {port} of this machine is taken", hint="stop the other process, or name another port"
            ) from error


_PORTS: Final = range(10_240, 30_000)
"""Below those of outgoing connections on every system in use (IANA: from 49,152; Linux: from 32,768)."""
_TRIED: Final = 1_000
_ANY: Final = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, for stacks that must not meet each other.

    None that the kernel hands to connections: one of those could be taken before a server listens on it.
    """
    found: list[int] = []
    for port in _ANY.sample(_PORTS, _TRIED):
        with suppress(OSError), socket.socket() as probed:
            probed.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise PortInUseError("no free port is left", hint="stop other stacks")
