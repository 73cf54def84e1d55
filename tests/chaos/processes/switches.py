"""Files that a fault makes and removes, read by the process that shall fail."""

import os
from pathlib import Path


class Switch:
    """One file; what is in it is the switch's value."""

    def __init__(self, name: str) -> None:
        self._path = Path(os.environ["CHAOS_SWITCHES"]) / name

    @property
    def is_on(self) -> bool:
        return self._path.exists()

    @property
    def value(self) -> float:
        """The number in the file; 0 without one."""
        try:
            return float(self._path.read_text(encoding="utf-8") or 0)
        except FileNotFoundError:
            return 0.0


def turn_on(switch: Path, value: float = 1.0) -> None:
    """Turn a switch on, whole or not at all."""
    switch.parent.mkdir(parents=True, exist_ok=True)
    temporary = switch.with_suffix(".new")
    temporary.write_text(str(value), encoding="utf-8")
    temporary.replace(switch)


def turn_off(switch: Path) -> None:
    switch.unlink()
