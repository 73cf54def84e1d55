"""What running control planes need before the first agent: keys of their custodian, a policy in force.

first_run.py keys                   makes the custodian's keys count, unless they do; else changes nothing
first_run.py policy HOST:PORT...    waits until every replica has loaded the policy in force
"""

import json
import re
import subprocess
import sys
import time
import urllib.request
from typing import Final

PURPOSES: Final = ("order", "log")
"""The policy key stays a file: policies are signed by people (agentfactory policy sign)."""
COUNTS: Final = frozenset({"KEY_STATE_LISTED", "KEY_STATE_SIGNING"})
LOADED: Final = re.compile(r"^af_policy_loaded 1\.0$", re.MULTILINE)
MAX_BYTES: Final = 8 * 1024 * 1024
ANSWER_SECONDS: Final = 5
READY_SECONDS: Final = 90
POLL_SECONDS: Final = 0.2


def cli(*arguments: str) -> str:
    command = ["agentfactory", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def keys() -> int:
    """Rotate to a key of the custodian what it does not sign for yet: keys that `init` made as files."""
    listed = json.loads(cli("keys", "list", "--json"))
    for purpose in PURPOSES:
        wanted = f"KEY_PURPOSE_{purpose.upper()}"
        ours = [one for one in listed["keys"] if one["purpose"] == wanted and one.get("custodyName")]
        if not any(one["state"] in COUNTS for one in ours):
            cli("keys", "rotate", purpose)
    return 0


def policy(replicas: list[str]) -> int:
    """Return 0 when all of them decide, 4 when one does not in time."""
    deadline = time.monotonic() + READY_SECONDS
    while waiting := [one for one in replicas if not decides(one)]:
        if time.monotonic() > deadline:
            print(f"error: no policy is loaded by {', '.join(waiting)}", file=sys.stderr)
            return 4
        time.sleep(POLL_SECONDS)
    return 0


def decides(replica: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{replica}/metrics", timeout=ANSWER_SECONDS) as answer:
            return LOADED.search(answer.read(MAX_BYTES).decode()) is not None
    except OSError:
        return False


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keys"]:
            sys.exit(keys())
        case ["policy", *hosts] if hosts:
            sys.exit(policy(hosts))
        case _:
            print(__doc__, file=sys.stderr)
            sys.exit(2)
