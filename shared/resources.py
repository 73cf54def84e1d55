"""What a run used: measured by its worker, named in its receipt. No I/O, no clock."""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from agentfactory.v1 import common_pb2

from shared.canonical import MAX_SAFE_INTEGER, JsonObject
from shared.errors import InvalidInputError
from shared.fields import Fields

_MICROSECOND: Final = timedelta(microseconds=1)
_NO_TIME: Final = timedelta(0)
_MAX_TIME: Final = timedelta(days=365)
_MAX_MICROSECONDS: Final = _MAX_TIME // _MICROSECOND
MAX_SMALL_COUNT: Final = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesUsed:
    """What one run used. Times are kept to the microsecond."""

    wall: timedelta = _NO_TIME
    cpu: timedelta = _NO_TIME
    """CPU time of the guest thread."""
    peak_memory_bytes: int = 0
    output_bytes: int = 0
    log_bytes: int = 0
    fuel: int = 0
    """Counted under the profiles deterministic and portable only."""
    table_elements: int = 0
    log_lines: int = 0
    peak_open_files: int = 0
    scratch_bytes: int = 0
    scratch_inodes: int = 0
    random_bytes: int = 0
    host_calls: int = 0
    host_call_bytes: int = 0
    """Requests and responses together."""
    host_call_time: timedelta = _NO_TIME
    """How long the guest waited in host calls."""
    llm_tokens: int = 0
    """Of language models: prompts and answers together, as the node counted them."""
    llm_cost_micros: int = 0
    """By the prices of the node's operator, in millionths of its currency."""

    @property
    def without_llm(self) -> "ResourcesUsed":
        """As much of it as version 2 of receipts can say."""
        return replace(self, llm_tokens=0, llm_cost_micros=0)

    @property
    def first_ones(self) -> "ResourcesUsed":
        """As much of it as version 1 of receipts can say."""
        return ResourcesUsed(**{name: getattr(self, name) for name in (*_FIRST_TIMES, *_FIRST_COUNTS)})


NO_RESOURCES: Final = ResourcesUsed()

_FIRST_TIMES: Final = ("wall", "cpu")
_FIRST_COUNTS: Final = ("peak_memory_bytes", "output_bytes", "log_bytes")
LLM_COUNTS: Final = ("llm_tokens", "llm_cost_micros")
_LATER_COUNTS: Final = (
    "fuel",
    "table_elements",
    "log_lines",
    "peak_open_files",
    "scratch_bytes",
    "scratch_inodes",
    "random_bytes",
    "host_calls",
    "host_call_bytes",
    *LLM_COUNTS,
)
_LATER_TIMES: Final = ("host_call_time",)
_TIMES: Final = (*_FIRST_TIMES, *_LATER_TIMES)
_COUNTS: Final = (*_FIRST_COUNTS, *_LATER_COUNTS)
RESOURCE_FIELDS: Final = (*_FIRST_TIMES, *_FIRST_COUNTS, *_LATER_COUNTS, *_LATER_TIMES)
"""In the order in which they are shown."""

SMALL_COUNTS: Final = frozenset({"table_elements", "peak_open_files", "scratch_inodes", "host_calls"})
"""What the contract carries in 32 bits."""

_KEYS: Final = {"wall": "wall_us", "cpu": "cpu_us", "host_call_time": "host_call_us"}
"""Of times, in receipts: whole microseconds."""


def check_resources(used: ResourcesUsed) -> None:
    """Refuse what `read_resources` would refuse.

    Raises:
        InvalidInputError: A time is negative or above 365 days, or a number is none of the contract.
    """
    for name in _TIMES:
        if not _NO_TIME <= getattr(used, name) <= _MAX_TIME:
            raise InvalidInputError(f"a run used {getattr(used, name)} of {name!r}")
    for name in _COUNTS:
        count = getattr(used, name)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _most(name):
            raise InvalidInputError(f"field {name!r} is not an integer from 0 to {_most(name)}")


def resources_json(used: ResourcesUsed) -> JsonObject:
    """Return what was used as receipts say it: of what version 1 does not know, only what is not zero."""
    said: JsonObject = {_KEYS[name]: getattr(used, name) // _MICROSECOND for name in _FIRST_TIMES}
    said |= {name: getattr(used, name) for name in _FIRST_COUNTS}
    # Only a number is left out: what is falsy and none shall not be read as 0.
    said |= {
        name: count for name in _LATER_COUNTS if (count := getattr(used, name)) or type(count) is not int
    }
    return said | {
        _KEYS[name]: time // _MICROSECOND
        for name in _LATER_TIMES
        if (time := getattr(used, name)) != _NO_TIME
    }


def read_resources(said: Fields) -> ResourcesUsed:
    """Take all that was used and refuse other fields, and a zero that is to be left out."""
    used: dict[str, Any] = {
        name: said.integer(_KEYS[name], maximum=_MAX_MICROSECONDS) * _MICROSECOND for name in _FIRST_TIMES
    }
    used |= {name: said.integer(name) for name in _FIRST_COUNTS}
    for name in _LATER_COUNTS:
        if said.has(name):
            used[name] = said.integer(name, minimum=1, maximum=_most(name))
    for name in _LATER_TIMES:
        if said.has(_KEYS[name]):
            used[name] = said.integer(_KEYS[name], minimum=1, maximum=_MAX_MICROSECONDS) * _MICROSECOND
    said.end()
    return ResourcesUsed(**used)


def resources_to_proto(used: ResourcesUsed) -> common_pb2.ResourcesUsed:
    """Return what was used as the contract carries it."""
    message = common_pb2.ResourcesUsed(**{name: count for name in _COUNTS if (count := getattr(used, name))})
    message.wall.FromTimedelta(used.wall)
    message.cpu.FromTimedelta(used.cpu)
    if used.host_call_time:
        message.host_call_time.FromTimedelta(used.host_call_time)
    return message


def resources_from_proto(message: common_pb2.ResourcesUsed) -> ResourcesUsed:
    """Return what `resources_to_proto` was given; a time that was never set is none."""
    used: dict[str, Any] = {name: getattr(message, name).ToTimedelta() for name in _TIMES}
    used |= {name: getattr(message, name) for name in _COUNTS}
    return ResourcesUsed(**used)


def _most(name: str) -> int:
    return MAX_SMALL_COUNT if name in SMALL_COUNTS else MAX_SAFE_INTEGER
