"""How many RPCs of one server each peer may have under way. Refuses at once; makes nobody wait.

Without it one identity that opens streams and never ends them takes the whole server: no node could renew a
lease.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Self

from shared.errors import ResourceExhaustedError

MAX_CONCURRENT_RPCS: Final = 8192
"""In one server, streams included; gRPC refuses more with RESOURCE_EXHAUSTED."""

RETRY_AFTER: Final = timedelta(seconds=1)
"""What a refused peer is told: a call ends when its own caller wants, so no rate says more."""

_ANONYMOUS: Final = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcBounds:
    """Parts of one server's RPCs."""

    of_others_than_nodes: int
    """Of all callers together: the rest is kept for nodes."""
    of_caller: int
    """Of one identity that is no node."""
    of_node: int
    streams_of_identity: int
    """Of a caller's or a node's, those with a stream on either side."""
    of_anonymous: int
    """Of all peers without an identity together."""
    streams_of_anonymous: int

    @classmethod
    def of(cls, total: int = MAX_CONCURRENT_RPCS) -> Self:
        """Return the parts of a server that takes `total`."""
        return cls(
            of_others_than_nodes=total - total // 4,
            of_caller=total // 2,
            of_node=total // 16,
            streams_of_identity=max(1, total // 32),
            of_anonymous=max(1, total // 64),
            streams_of_anonymous=max(1, total // 512),
        )


@dataclass(slots=True)
class _Peer:
    is_node: bool
    calls: int = 0
    streams: int = 0


class InFlight:
    """Counts RPCs by identity. Used on one event loop only."""

    def __init__(self, bounds: RpcBounds) -> None:
        self._bounds = bounds
        self._peers: dict[str, _Peer] = {}  # of those with an rpc under way
        self._others = 0

    @contextmanager
    def count(self, identity: str | None, *, stream: bool) -> Iterator[None]:
        """Count one RPC for the length of the block.

        Raises:
            ResourceExhaustedError: The peer, or all callers together, have too many under way.
        """
        name = identity or _ANONYMOUS
        peer = self._peers.get(name)
        if peer is None:
            peer = _Peer(is_node=_is_node(name))
        self._check(name, peer, stream=stream)
        self._peers[name] = peer
        peer.calls += 1
        peer.streams += stream
        self._others += not peer.is_node
        try:
            yield
        finally:
            peer.calls -= 1
            peer.streams -= stream
            self._others -= not peer.is_node
            if not peer.calls:
                del self._peers[name]

    def _check(self, name: str, peer: _Peer, *, stream: bool) -> None:
        bounds = self._bounds
        if name == _ANONYMOUS:
            calls, streams = bounds.of_anonymous, bounds.streams_of_anonymous
        else:
            calls, streams = bounds.of_node if peer.is_node else bounds.of_caller, bounds.streams_of_identity
        who = name or "peers without an identity"
        if peer.calls >= calls:
            raise ResourceExhaustedError(
                f"{calls} calls of {who} are under way", hint=_HINT, retry_after=RETRY_AFTER
            )
        if stream and peer.streams >= streams:
            raise ResourceExhaustedError(
                f"{streams} streams of {who} are under way", hint=_HINT, retry_after=RETRY_AFTER
            )
        if not peer.is_node and self._others >= bounds.of_others_than_nodes:
            raise ResourceExhaustedError(
                f"{bounds.of_others_than_nodes} calls are under way here",
                hint="try again, or another replica",
                retry_after=RETRY_AFTER,
            )


_HINT: Final = "end some of them first"


def _is_node(identity: str) -> bool:
    # spiffe://<installation>/node/<node id>; whether it is a true one is decided by access.
    # A token's subject may hold slashes too, so the scheme counts.
    return identity.startswith("spiffe://") and identity.split("/", 4)[3:4] == ["node"]
