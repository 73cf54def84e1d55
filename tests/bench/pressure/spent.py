"""What each part of the system took of the processor in a window: also a busy machine tells that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from tests.bench.peers.machine import Used
from tests.bench.scale.costs import tree_cpu_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Processor seconds of some process trees, and what others took of the machine meanwhile."""

    machine: Used
    seconds: Mapping[str, float]

    @classmethod
    def now(cls, roots: Mapping[str, int]) -> Self:
        """Read the counters of the trees with these names and roots."""
        return cls(
            machine=Used.now(list(roots.values())),
            seconds={name: tree_cpu_seconds(root) for name, root in roots.items()},
        )

    def cpus_since(self, before: "Spent") -> dict[str, float]:
        """Return how many processors each tree, and everything else, has had on average."""
        lasted = self.machine.at - before.machine.at
        used = {name: (total - before.seconds[name]) / lasted for name, total in self.seconds.items()}
        return used | {"others": self.machine.others_since(before.machine)}


def told(cpus: Mapping[str, float]) -> str:
    """Return one line of it."""
    return ", ".join(f"{name} {used:.2f}" for name, used in cpus.items())
