"""All that a run used is shown, by a word of its own."""

from datetime import timedelta

from cli.resources import used_fields
from shared.resources import RESOURCE_FIELDS, ResourcesUsed


def test_nothing_that_was_used_is_hidden_and_no_word_is_used_twice():
    everything = ResourcesUsed(
        **{
            name: timedelta(milliseconds=index) if name in {"wall", "cpu", "host_call_time"} else index
            for index, name in enumerate(RESOURCE_FIELDS, 1)
        }
    )
    shown = used_fields(everything)
    assert len(dict(shown)) == len(RESOURCE_FIELDS)
    assert dict(shown)["fuel"] == str(RESOURCE_FIELDS.index("fuel") + 1)


def test_what_was_not_used_is_left_out():
    assert used_fields(ResourcesUsed(cpu=timedelta(microseconds=1500), host_calls=2)) == [
        ("wall", "0.0 ms"),
        ("cpu", "1.5 ms"),
        ("memory", "0 bytes"),
        ("host calls", "2"),
    ]
