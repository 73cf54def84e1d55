"""What a run used, as people read it. Knows the words and units; asks nobody."""

from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from shared.resources import ResourcesUsed

_WORDS: Final = {
    "wall": ("wall", ""),
    "cpu": ("cpu", ""),
    "peak_memory_bytes": ("memory", " bytes"),
    "output_bytes": ("output size", " bytes"),
    "log_bytes": ("log size", " bytes"),
    "fuel": ("fuel", ""),
    "table_elements": ("table elements", ""),
    "log_lines": ("log lines", ""),
    "peak_open_files": ("open files", ""),
    "scratch_bytes": ("scratch", " bytes"),
    "scratch_inodes": ("scratch names", ""),
    "random_bytes": ("random", " bytes"),
    "host_calls": ("host calls", ""),
    "host_call_bytes": ("in host calls", " bytes"),
    "host_call_time": ("waited in them", ""),
    "llm_tokens": ("model tokens", ""),
    "llm_cost_micros": ("model cost", " millionths"),
}
"""By the field: what it is called, and the unit of a number."""
_ALWAYS: Final = frozenset({"wall", "cpu", "peak_memory_bytes"})


def used_fields(used: "ResourcesUsed") -> list[tuple[str, str]]:
    """Return all that was used, name and value; of most things only what is not zero."""
    pairs = ((name, words, getattr(used, name)) for name, words in _WORDS.items())
    return [
        (word, milliseconds(value) if isinstance(value, timedelta) else f"{value}{unit}")
        for name, (word, unit), value in pairs
        if value or name in _ALWAYS
    ]


def milliseconds(time: timedelta) -> str:
    return f"{time / timedelta(milliseconds=1):.1f} ms"
