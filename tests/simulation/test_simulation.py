"""The system lives through faults in virtual time, and defects that are planted on purpose are found.

Long runs: ``python -m tests.simulation --seeds 10000``.
"""

from collections.abc import Iterator

import pytest

from tests.simulation.mutations import MUTATIONS, SLOW_TO_FIND
from tests.simulation.search import Tally, first_violation, lives, report
from tests.simulation.world import Simulator

LIVES = range(1, 41)
BUDGET = range(1, 301)
"""Seeds within which each planted defect must be found; most are within sixty."""

MIN_FAULTS = 600
"""Of the short form: fewer would mean that the faults have gone quiet."""


QUICKLY_FOUND = [name for name in MUTATIONS if name not in SLOW_TO_FIND]
"""The others take some thirty lives each: ``python -m tests.simulation --mutations`` looks for all."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator() as one:
        yield one


def test_nothing_is_lost_and_nothing_happens_twice(simulator: Simulator) -> None:
    tally = Tally()
    for life in lives(LIVES, simulator=simulator):
        tally.add(life)
        if life.violation is not None:
            pytest.fail(report(life), pytrace=False)

    assert tally.lives == len(LIVES)
    assert tally.faults.total() >= MIN_FAULTS
    assert tally.outcomes["succeeded"] > tally.lives


@pytest.mark.parametrize("mutation", QUICKLY_FOUND)
def test_a_planted_defect_is_found_and_its_seed_finds_it_again(simulator: Simulator, mutation: str) -> None:
    found = first_violation(BUDGET, mutation=mutation, simulator=simulator)
    assert found is not None

    again = first_violation(range(found.seed, found.seed + 1), mutation=mutation, simulator=simulator)
    healthy = first_violation(range(found.seed, found.seed + 1), simulator=simulator)

    assert again is not None
    assert (str(again.violation), again.trace.digest()) == (str(found.violation), found.trace.digest())
    assert healthy is None
