"""Looks at the calls of control planes for a while and fails when too many failed by their own fault.

    python error_rate.py --window 60 --maximum 0.01 HOST:PORT...

A host that has several addresses is asked at each. Counts are those of af_rpc_seconds; exit code 1: too many
failed, or nobody could be asked.
"""

import argparse
import re
import socket
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

OUR_FAULT: Final = frozenset({"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS", "UNIMPLEMENTED"})
LINE: Final = re.compile(
    r'^af_rpc_seconds_count\{code="([A-Z_]+)",method="[^"]*"\} ([0-9.e+]+)$', re.MULTILINE
)
MAX_BYTES: Final = 8 * 1024 * 1024
TIMEOUT: Final = 5.0


def addresses(targets: Iterable[str]) -> Iterator[str]:
    """Yield every address behind the targets."""
    for target in targets:
        host, _, port = target.rpartition(":")
        found = {one[4][0] for one in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)}
        yield from (
            f"[{one}]:{port}" if ":" in str(one) else f"{one}:{port}" for one in sorted(found, key=str)
        )


def counts(targets: Iterable[str]) -> Counter[str]:
    """Return how many calls ended with which code so far, over all targets."""
    total: Counter[str] = Counter()
    for address in addresses(targets):
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT) as answer:
            text = answer.read(MAX_BYTES).decode()
        for code, count in LINE.findall(text):
            total[code] += int(float(count))
    return total


def judge(before: Counter[str], after: Counter[str], maximum: float) -> tuple[bool, str]:
    """Return whether the calls in between were good enough, and a line that says so.

    A pod that went meanwhile took its counts along: what is less than before counts as nothing.
    """
    seen = after - before
    failed = sum(count for code, count in seen.items() if code in OUR_FAULT)
    total = sum(seen.values())
    share = failed / total if total else 0.0
    return share <= maximum, f"{failed} of {total} calls failed ({share:.2%}, {maximum:.2%} is allowed)"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--window", type=float, default=60.0, help="seconds")
    parser.add_argument("--maximum", type=float, default=0.01, help="share of calls")
    parser.add_argument("targets", nargs="+", metavar="HOST:PORT")
    given = parser.parse_args()
    try:
        before = counts(given.targets)
        time.sleep(given.window)
        good, line = judge(before, counts(given.targets), given.maximum)
    except (OSError, ValueError) as error:
        print(f"cannot be asked: {error}")
        return 1
    print(line)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
