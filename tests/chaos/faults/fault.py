"""The one shape of every fault: it is injected, it holds for a while, it is lifted, and it proves that it happened."""

from abc import ABC, abstractmethod
from typing import ClassVar

from tests.chaos.world import Needs, World


class Fault(ABC):
    """One thing that goes wrong. A new one for each run; it may keep what `lift` has to know."""

    name: ClassVar[str]
    says: ClassVar[str]
    """For the table."""
    needs: ClassVar[Needs] = Needs()
    hold_seconds: ClassVar[float] = 12.0
    takes_nodes_off: ClassVar[bool] = False
    """Whether one node of four does no work meanwhile: then latency has a bar, once that was noticed."""

    @abstractmethod
    async def inject(self, world: World) -> None:
        """Let it go wrong."""

    @abstractmethod
    async def lift(self, world: World) -> None:
        """Take away what goes wrong; what was killed is started again, and not waited for."""

    async def proof(self, world: World) -> str:
        """Return what shows that it happened, read after recovery.

        Raises:
            AssertionError: It did not happen, or the system did not say what it has to say about it.
        """
        return ""
