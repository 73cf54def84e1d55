"""Denied engines in memory."""

from collections.abc import Sequence

from control_plane.engines.domain import EngineDenial


class FakeEngines:
    """Implements dispatch's `Engines`."""

    def __init__(self, *denied: EngineDenial) -> None:
        self.denied = list(denied)

    async def denials(self) -> Sequence[EngineDenial]:
        return self.denied
