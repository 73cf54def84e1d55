"""What the gateway counts, in Prometheus' form. Names no caller."""

from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, Histogram

from shared.certificates import seconds_left
from shared.clock import Clock

BUCKETS: Final = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    600.0,
)
NO_ROUTE: Final = "none"


class GatewayMetrics:
    """Counts requests; cheap and never raises."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._seconds = Histogram(
            "af_gateway_request_seconds",
            "From the head of a request to the end of its answer.",
            ["rpc", "status"],
            registry=registry,
            buckets=BUCKETS,
        )
        self._active = Gauge("af_gateway_requests", "Requests under way.", registry=registry)

    def watch_certificate(self, path: Path, clock: Clock) -> None:
        """Show how long the certificate in this file counts yet."""
        left = Gauge(
            "af_certificate_seconds",
            "How long a certificate counts yet; below 0: no more, or it cannot be read.",
            ["certificate"],
            registry=self._registry,
        )
        left.labels("gateway").set_function(partial(seconds_left, path, clock))

    def request(self, rpc: str, status: int, seconds: float, trace_id: str = "") -> None:
        """One request has ended. `rpc` is a name of the contract, or empty; `trace_id` of a trace kept."""
        exemplar = {"trace_id": trace_id} if trace_id else None
        self._seconds.labels(rpc or NO_ROUTE, str(status)).observe(seconds, exemplar)

    def active(self, count: int) -> None:
        """So many requests are under way."""
        self._active.set(count)
