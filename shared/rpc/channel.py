"""Options of both ends of a gRPC connection, and channels. Holds no credentials of its own."""

from typing import Final

import grpc

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
MAX_METADATA_BYTES: Final = 16 * 1024

KEEPALIVE_MS: Final = 10_000
PING_TIMEOUT_MS: Final = 5_000
"""With KEEPALIVE_MS: a black-holed peer is noticed after 15 s. Rely on heartbeats and leases instead."""

MAX_CONCURRENT_STREAMS: Final = 256
"""RPCs in flight on one connection. More of them wait in the client, in order, and cost the server nothing:
HTTP/2's own back-pressure (RFC 9113, section 5.1.2). More than a tenant has turns, fewer than may wait for
one (`control_plane/call_turns.py`): one connection alone is slowed down and not refused. Who waits for the
ends of more executions than this at once uses StreamExecutions, or more connections.
"""

MAX_PENDING_RPCS: Final = 4096
"""RPCs of all connections that gRPC has read and no event loop has seen. gRPC cancels more of them without
our reason and hint; its own bound is 1,000, which one slow turn of the loop reaches.
"""

RECONNECT_FIRST_MS: Final = 100
RECONNECT_MAX_MS: Final = 2_000
CONNECT_MS: Final = 1_000
"""For one attempt at least: a busy server takes longer than the first pause for a TLS handshake."""

Options = tuple[tuple[str, int], ...]

_BOTH_ENDS: Final[Options] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    # `grpc.keepalive_timeout_ms` does nothing in grpcio 1.85; the ping's own time-out does.
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

CHANNEL_OPTIONS: Final[Options] = (
    *_BOTH_ENDS,
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
)

SERVER_OPTIONS: Final[Options] = (
    *_BOTH_ENDS,
    ("grpc.http2.min_ping_interval_without_data_ms", PING_TIMEOUT_MS),
    ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
    # By itself gRPC counts a stream until its memory is free, long after its client may open the next: a
    # client that kept to the bound was refused (UNAVAILABLE) as often as it was answered.
    ("grpc.http.overload_protection", 0),
    ("grpc.server.max_pending_requests", MAX_PENDING_RPCS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_RPCS),
    # A second process must not share the port silently: the start fails with PORT_IN_USE instead.
    ("grpc.so_reuseport", 0),
)


def connect(target: str, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    """Return a channel; it connects when it is first used. The caller closes it.

    `target` is ``host:port``; the server's certificate must name the host.
    """
    return grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
