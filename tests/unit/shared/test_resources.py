"""What a run used is said once, and read as it was said, in receipts and in the contract."""

from dataclasses import replace
from datetime import timedelta

import pytest
from agentfactory.v1 import common_pb2
from hypothesis import given
from hypothesis import strategies as st

from shared.canonical import JsonObject
from shared.errors import InvalidInputError, MalformedError, UnknownFieldError
from shared.fields import Fields
from shared.limits import LIMIT_FIELDS
from shared.resources import (
    LLM_COUNTS,
    RESOURCE_FIELDS,
    SMALL_COUNTS,
    ResourcesUsed,
    check_resources,
    read_resources,
    resources_from_proto,
    resources_json,
    resources_to_proto,
)

TIMES = {"wall", "cpu", "host_call_time"}

resources = st.builds(
    ResourcesUsed,
    **{
        name: st.timedeltas(timedelta(0), timedelta(days=365))
        if name in TIMES
        else st.integers(0, 2**32 - 1 if name in SMALL_COUNTS else 2**53 - 1)
        for name in RESOURCE_FIELDS
    },
)


def read(said: JsonObject) -> ResourcesUsed:
    return read_resources(Fields(said, "resources"))


@given(resources)
def test_what_was_used_comes_back_from_receipts_and_from_the_contract(used):
    check_resources(used)
    assert read(resources_json(used)) == used
    encoded = resources_to_proto(used).SerializeToString(deterministic=True)
    assert resources_from_proto(common_pb2.ResourcesUsed.FromString(encoded)) == used


def test_every_field_of_the_contract_is_said():
    everything = ResourcesUsed(
        **{name: timedelta(seconds=1) if name in TIMES else 1 for name in RESOURCE_FIELDS}
    )
    said = resources_to_proto(everything)
    assert {field.name for field, _ in said.ListFields()} == set(
        common_pb2.ResourcesUsed.DESCRIPTOR.fields_by_name
    )


def test_what_was_stored_before_later_fields_existed_is_read():
    stored = common_pb2.ResourcesUsed(peak_memory_bytes=5)
    assert resources_from_proto(stored) == ResourcesUsed(peak_memory_bytes=5)


def test_a_later_figure_has_one_form():
    said = resources_json(ResourcesUsed(fuel=7))
    assert set(said) == {"wall_us", "cpu_us", "peak_memory_bytes", "output_bytes", "log_bytes", "fuel"}
    with pytest.raises(MalformedError):
        read({**said, "fuel": 0})
    with pytest.raises(MalformedError):
        read({**said, "host_calls": 2**32})
    with pytest.raises(UnknownFieldError):
        read({**said, "gpu": 1})


@pytest.mark.parametrize("name", RESOURCE_FIELDS)
def test_a_figure_out_of_range_is_refused(name):
    odd = timedelta(microseconds=-1) if name in TIMES else 2**32 if name in SMALL_COUNTS else 2**53
    with pytest.raises(InvalidInputError, match=name):
        check_resources(replace(ResourcesUsed(), **{name: odd}))


def test_every_limit_has_a_figure():
    """Of language models the capability bounds each run, no limit does."""
    figures = {"wall": "wall_ms", "cpu": "cpu_ms", "host_call_time": "host_call_ms"}
    figures |= {f"peak_{name}": name for name in ("memory_bytes", "open_files")}
    assert {figures.get(name, name) for name in RESOURCE_FIELDS} - set(LLM_COUNTS) == set(LIMIT_FIELDS)
