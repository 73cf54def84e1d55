"""Looks for a life in which something happens that must never happen, and says how to live it again."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.simulation.mutations import planted
from tests.simulation.world import DEFAULT_SHAPE, Life, Shape, Simulator


@dataclass
class Tally:
    """What was lived so far."""

    lives: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    seconds: float = 0.0
    orders: int = 0
    unsigned: int = 0

    def add(self, life: Life) -> None:
        self.lives += 1
        self.faults.update(life.trace.faults)
        self.outcomes.update(life.outcomes)
        self.steps += life.steps
        self.seconds += life.seconds
        self.orders += life.orders
        self.unsigned += life.unsigned


def lives(
    seeds: range,
    *,
    mutation: str | None = None,
    shape: Shape = DEFAULT_SHAPE,
    simulator: Simulator | None = None,
) -> Iterator[Life]:
    """Live the lives of these seeds, one after the other, with a planted defect or none."""
    with planted(mutation):
        if simulator is not None:
            yield from (simulator.live(seed, shape=shape) for seed in seeds)
            return
        with Simulator() as own:
            yield from (own.live(seed, shape=shape) for seed in seeds)


def first_violation(
    seeds: range, *, mutation: str | None = None, simulator: Simulator | None = None
) -> Life | None:
    """The first life that breaks a rule; None when none does."""
    found = lives(seeds, mutation=mutation, simulator=simulator)
    return next((life for life in found if life.violation is not None), None)


def report(life: Life, *, mutation: str | None = None, last: int = 120) -> str:
    """What a reader needs of a life that broke a rule."""
    command = f"python -m tests.simulation --seed {life.seed}"
    if mutation is not None:
        command += f' --mutation "{mutation}"'
    return "\n".join(
        (
            life.trace.render(last),
            "",
            f"seed {life.seed}: {life.violation}",
            f"again: {command}",
            f"trace: {life.trace.digest()}",
        )
    )
