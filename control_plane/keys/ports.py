"""What the control plane needs from whoever keeps its keys. Vault will implement the same."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A certificate this installation has issued."""

    spiffe_id: str
    serial: str
    """Lower-case hexadecimal."""
    chain_der: tuple[bytes, ...]
    """Leaf first; the authority itself is last."""
    expires_at: datetime


class CertificateAuthority(Protocol):
    """Issues the identities of nodes, services and callers."""

    async def issue(self, csr_der: bytes, *, spiffe_id: str, ttl: timedelta) -> IssuedCertificate:
        """Return a client certificate for the key in a PKCS#10 request; its names are ignored.

        Raises:
            InvalidInputError: The request does not decode, is not signed by its own key, or its key is
                refused.
            KeyUnavailableError: The authority does not answer.
        """
