"""The turn of the RPC that runs now: how many calls are worked on at once is decided elsewhere.

The interceptor in `shared/rpc/server.py` takes a turn before it looks at a call and gives it back after; what
only waits from some point on (for the end of an execution) gives it back there, with `end_turn()`.
"""

from contextvars import ContextVar
from typing import Final, Protocol

from shared.ids import TenantId


class Turn(Protocol):
    """The right to be worked on."""

    def end(self) -> None:
        """Let another call be worked on. Repeats have no effect."""


class Turns(Protocol):
    """Hands turns out. Implemented by control_plane/call_turns."""

    def require_room(self, tenant_id: TenantId, service: str) -> None:
        """Return unless such a call would be refused now: asked before its message is read.

        Raises:
            ResourceExhaustedError: As `take`.
        """

    async def take(self, tenant_id: TenantId, service: str) -> Turn:
        """Return when a call of this tenant to this service may be worked on.

        Raises:
            ResourceExhaustedError: Too many such calls wait already; it says when to come again.
        """


class NoTurns:
    """Everything is worked on at once."""

    def require_room(self, tenant_id: TenantId, service: str) -> None:
        """See `Turns.require_room`."""

    async def take(self, tenant_id: TenantId, service: str) -> Turn:  # noqa: ARG002 - they are all the same
        """See `Turns.take`."""
        return _NO_TURN


class _NoTurn:
    __slots__ = ()

    def end(self) -> None:
        """Nothing waits for it."""


_NO_TURN: Final = _NoTurn()

_turn: ContextVar[Turn] = ContextVar("turn", default=_NO_TURN)


def set_turn(turn: Turn) -> None:
    """Make `turn` that of this task; only the server interceptor and tests do."""
    _turn.set(turn)


def end_turn() -> None:
    """Give the turn of the current RPC back before its end; outside an RPC nothing happens."""
    _turn.get().end()
