"""The tracer of a process, from its settings, for as long as it runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from shared.clock import Clock, Random
from shared.errors import SettingsError
from shared.tracing import NO_TRACER, Tracer


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """Where spans go and how many are kept."""

    endpoint: str | None
    """http://host:4317, or https; None: nothing is traced."""
    authority: Path | None
    """PEM that the collector's certificate is checked against, instead of the system's."""
    ratio: float
    """Of the traces that begin here."""
    max_per_second: int


@asynccontextmanager
async def tracing(
    options: TraceOptions,
    *,
    service: str,
    instance: str,
    registry: CollectorRegistry,
    clock: Clock,
    random: Random,
) -> AsyncIterator[Tracer]:
    """Yield the tracer of this process; spans leave in the background until the block ends.

    Raises:
        SettingsError: The authority's file, or a standard variable of OpenTelemetry, cannot be used.
    """
    if options.endpoint is None:
        yield NO_TRACER
        return
    # Whoever traces nothing loads nothing of it.
    from shared.otlp import OtlpSink  # noqa: PLC0415

    sink = OtlpSink(
        options.endpoint,
        authority=_authority(options.authority),
        resource={"service.name": service, "service.instance.id": instance},
        registry=registry,
    )
    try:
        yield Tracer(
            sink=sink,
            ratio=options.ratio,
            max_per_second=options.max_per_second,
            clock=clock,
            random=random,
        )
    finally:
        await sink.close()


def _authority(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"otlp_ca_file {path} cannot be read: {error.strerror}") from error
