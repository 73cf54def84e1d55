"""Bodies of an installation without keys for them: stored as they are; none that is sealed is read."""

# ruff: noqa: ARG002 - the arguments are those of the protocol

from typing import NoReturn

from control_plane.body_keys.sealing import BodyPlace
from shared.errors import KeyUnavailableError
from shared.ids import BodyId, TenantId


class PlainBodies:
    """Implements `BodySealer`."""

    is_needed = False

    async def seal(self, tenant_id: TenantId, body_id: BodyId, content: bytes) -> None:
        """See `BodySealer.seal`."""

    async def seal_result(self, tenant_id: TenantId, body_id: BodyId, content: bytes) -> None:
        """See `BodySealer.seal_result`."""

    async def open(self, place: BodyPlace, sealed: bytes) -> NoReturn:
        """See `BodySealer.open`."""
        raise _no_keys(place.body_id)

    async def open_piece(self, place: BodyPlace, header: bytes, segments: bytes, *, first: int) -> NoReturn:
        """See `BodySealer.open_piece`."""
        raise _no_keys(place.body_id)

    def open_at_once(self, place: BodyPlace, sealed: bytes) -> None:
        """See `BodySealer.open_at_once`."""

    async def require(self, tenant_id: TenantId, header: bytes) -> NoReturn:
        """See `BodySealer.require`."""
        raise _no_keys(f"of tenant {tenant_id}")


def _no_keys(what: str) -> KeyUnavailableError:
    return KeyUnavailableError(f"body {what} is encrypted, and there are no keys here")
