"""The authority that a running node pins, as `trust.json` says now. Takes nothing from the network."""

from pathlib import Path

from shared.errors import AgentFactoryError
from shared.logs import get_logger
from shared.trust import TrustRoots, read_trust

logger = get_logger(__name__)


class FollowedAuthority:
    """Follows the file: a new authority needs no restart.

    The installation and the root key stay what they were at the start: a new root comes by a keyset.
    """

    def __init__(self, path: Path, roots: TrustRoots) -> None:
        self._path = path
        self._installation = roots.installation
        self._known = roots.ca_certificate_pem

    def read(self) -> bytes:
        """Return the authority's certificates; the ones before while the file is not usable."""
        try:
            found = read_trust(self._path)
        except AgentFactoryError as error:
            logger.warning("the trust roots cannot be read again", error=str(error))
            return self._known
        if found.installation != self._installation:
            logger.warning("the trust roots are of another installation now", installation=found.installation)
            return self._known
        if found.ca_certificate_pem != self._known:
            logger.info("another authority is pinned")
            self._known = found.ca_certificate_pem
        return self._known
