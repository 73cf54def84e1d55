"""Runs every bench after the other: ``python -m tests.bench [NAME …]``. Exits 1 when a bar is missed."""

import sys
from importlib import import_module
from typing import Final

BENCHES: Final = ("engine", "execute", "demo")


def main() -> int:
    names = sys.argv[1:] or BENCHES
    unknown = set(names) - set(BENCHES)
    if unknown:
        sys.stderr.write(f"no bench {min(unknown)!r}; there are {', '.join(BENCHES)}\n")
        return 2
    return max(import_module(f"tests.bench.{name}").main() for name in names)


if __name__ == "__main__":
    sys.exit(main())
