"""Lets zoneinfo find zones by name. Importing it keeps them all in memory: a run has no files to read."""

import io
import json
import zoneinfo
import zoneinfo._common
import zoneinfo._tzpath
from typing import BinaryIO

with open("/lib/zones.bin", "rb") as file:  # noqa: PTH123 - as in agentfactory_start
    _places = {name: tuple(place) for name, place in json.loads(file.readline()).items()}
    _zones = file.read()


def load(key: str) -> BinaryIO:
    """Return a zone's data, as `zoneinfo` asks for it when no folder has it."""
    if key not in _places:
        raise zoneinfo.ZoneInfoNotFoundError(f"No time zone found with key {key}")
    at, size = _places[key]
    return io.BytesIO(_zones[at : at + size])


def available() -> set[str]:
    """Return the names of all zones."""
    return set(_places)


def install() -> None:
    """Make `zoneinfo` use them."""
    zoneinfo.reset_tzpath(to=())
    zoneinfo._common.load_tzdata = load  # type: ignore[attr-defined]  # noqa: SLF001 - its only door
    for module in (zoneinfo, zoneinfo._tzpath):  # noqa: SLF001
        module.available_timezones = available  # type: ignore[attr-defined]
