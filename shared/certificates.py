"""Until when a certificate on disk counts, as a gauge reads it: each time anew, because files are rotated."""

from datetime import datetime
from pathlib import Path

from cryptography import x509

from shared.clock import Clock
from shared.errors import AgentFactoryError, KeyFormatError
from shared.rpc.tls import read_certificates

UNREADABLE: float = -1.0
"""Seconds that are left of a certificate which cannot be read: an alert on few seconds sees it too."""


def certificate_ends_at(path: Path) -> datetime:
    """Return when the first certificate of a PEM file ends: the leaf, or the authority in use.

    Raises:
        NotFoundError: It is missing.
        KeyFormatError: It does not decode, or is too large.
    """
    try:
        return x509.load_pem_x509_certificates(read_certificates(path))[0].not_valid_after_utc
    except ValueError as error:
        raise KeyFormatError(f"certificate {path} does not decode: {error}") from error


def seconds_left(path: Path, clock: Clock) -> float:
    """Return how long it counts yet: below 0 when it does not, or cannot be read. Never raises."""
    try:
        return (certificate_ends_at(path) - clock.now()).total_seconds()
    except AgentFactoryError:
        return UNREADABLE
