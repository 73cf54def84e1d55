"""The short form of `make chaos`: faults whose run is cut short, judged by what was lost and not by time."""

import pytest

from tests.chaos.faults.table import FAULTS, SHORT
from tests.chaos.run import QUICK, run_fault


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", SHORT)
async def test_nothing_acknowledged_is_lost_and_everything_ends_once(name: str) -> None:
    row = await run_fault(FAULTS[name](), QUICK)
    assert [failure for failure in row.failures if failure not in row.slow] == [], row.notes
    assert row.acknowledged > 30
