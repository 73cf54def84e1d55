from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID

import pytest

from shared import ids
from shared.errors import InvalidInputError
from tests.fakes.clock import FakeClock, FakeRandom

KINDS = [kind for kind in vars(ids).values() if isinstance(kind, ids.IdKind)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.prefix)
def test_new_id_is_a_uuid7_behind_its_prefix_and_parses_back(kind):
    clock = FakeClock()
    made = ids.new_id(kind, clock, FakeRandom())
    uuid = UUID(made.removeprefix(f"{kind.prefix}_"))
    assert (uuid.version, uuid.variant) == (7, RFC_4122)
    assert ids.parse_id(kind, made) == made
    assert ids.id_made_at(made) == clock.now()
    assert len(made) <= ids.MAX_ID_CHARS


def test_prefixes_are_unique():
    assert len({kind.prefix for kind in KINDS}) == len(KINDS)


def test_uuid7_example_of_rfc_9562_appendix_a6():
    class Fixed:
        def token_bytes(self, count):
            return (0xCC3 << 64 | 0x18C4DC0C0C07398F).to_bytes(count, "big")

    at = datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)
    made = ids.new_id(ids.EXECUTION, FakeClock(at), Fixed())
    assert made == "exe_017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


def test_ids_sort_by_the_millisecond_of_their_making():
    clock, random = FakeClock(), FakeRandom()
    made = []
    for _ in range(50):
        made.append(ids.new_id(ids.ORDER, clock, random))
        clock.advance(timedelta(milliseconds=1))
    assert made == sorted(made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "exe_",
        "agt_017f22e2-79b0-7cc3-98c4-dc0c0c07398f",
        "exe_017F22E2-79B0-7CC3-98C4-DC0C0C07398F",
        "exe_017f22e2-79b0-4cc3-98c4-dc0c0c07398f",
        "exe_017f22e2-79b0-7cc3-c8c4-dc0c0c07398f",
        "exe_017f22e279b07cc398c4dc0c0c07398f",
        "exe_017f22e2-79b0-7cc3-98c4-dc0c0c07398f\n",
        "exe_017f22e2-79b0-7cc3-98c4-dc0c0c07398f" + "0" * 100,
    ],
)
def test_other_text_is_no_execution_id(text):
    with pytest.raises(InvalidInputError, match="exe_<uuidv7>"):
        ids.parse_id(ids.EXECUTION, text)
