"""Which modules are refused after how many crashes, and for how long."""

from datetime import timedelta

import pytest

from data_plane.orders import quarantine as quarantine_module
from data_plane.orders.quarantine import Quarantine, Suspect
from shared.digests import sha256_digest
from shared.ids import TenantId

ONE = Suspect(TenantId("one"), sha256_digest(b"module"))
OTHER_TENANT = ONE._replace(tenant_id=TenantId("two"))
OTHER_MODULE = ONE._replace(module_digest=sha256_digest(b"another"))


@pytest.fixture
def quarantine() -> Quarantine:
    return Quarantine(crashes=3, window=timedelta(seconds=60), duration=timedelta(seconds=100))


def crash(quarantine: Quarantine, *times: float, suspect: Suspect = ONE) -> list[bool]:
    return [quarantine.note_crash(suspect, now=at) for at in times]


def test_the_third_crash_within_the_window_begins_it_and_its_time_ends_it(quarantine):
    assert crash(quarantine, 0, 30) == [False, False]
    assert quarantine.remaining(ONE, now=30) is None
    assert crash(quarantine, 59.9) == [True]
    assert quarantine.remaining(ONE, now=60) == timedelta(seconds=99.9)
    assert quarantine.remaining(ONE, now=159.8) is not None
    assert quarantine.remaining(ONE, now=159.9) is None


def test_crashes_beyond_the_window_do_not_count(quarantine):
    assert crash(quarantine, 0, 30, 60, 89.9) == [False, False, False, True]


def test_it_begins_anew_after_its_time(quarantine):
    crash(quarantine, 0, 0, 0)
    assert crash(quarantine, 50) == [False]  # what was running already
    assert crash(quarantine, 100, 101) == [False, False]
    assert quarantine.remaining(ONE, now=101) is None
    assert crash(quarantine, 102) == [True]


def test_nobody_else_suffers(quarantine):
    crash(quarantine, 0, 0, 0)
    assert quarantine.remaining(OTHER_TENANT, now=1) is None
    assert quarantine.remaining(OTHER_MODULE, now=1) is None


def test_memory_is_bounded(quarantine, monkeypatch):
    monkeypatch.setattr(quarantine_module, "MAX_SUSPECTS", 2)
    crash(quarantine, 0, 0, 0)
    crash(quarantine, 1, suspect=OTHER_TENANT)
    assert quarantine.remaining(ONE, now=1) is not None
    crash(quarantine, 2, suspect=OTHER_MODULE)
    assert quarantine.remaining(ONE, now=2) is None


@pytest.mark.parametrize(("crashes", "window"), [(0, 1), (1, 0)])
def test_one_that_could_never_begin_or_end_is_refused(crashes, window):
    with pytest.raises(ValueError, match="quarantine"):
        Quarantine(crashes=crashes, window=timedelta(seconds=window), duration=timedelta(seconds=1))
