"""What control planes need before the first agent: the policy on the OPA servers, keys of their custodian.

    first_run.py policy FOLDER SERVER...    writes FOLDER/SERVER.tar.gz, the built-in policy
    first_run.py keys                       makes the custodian's keys count; does nothing if they do

A bundle that somebody else put there stays as it is: another policy is in force then, or is to be.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from control_plane.policy.builtin import builtin_policy
from shared.opa_bundle import opa_bundle

OVERLAP_HOURS: Final = {"order": "0", "log": "1"}
"""By purpose. An order key that is a file ends at once: no revocation falls back to it. The log's counts
until nodes know the new one. The policy key stays a file: policies are signed by people."""
COUNTS: Final = frozenset({"KEY_STATE_LISTED", "KEY_STATE_SIGNING"})

AWAY: Final = 4
TRIES: Final = 10
PAUSE_SECONDS: Final = 3.0


def cli(*arguments: str) -> str:
    command = ["agentfactory", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def keys() -> int:
    """Rotate to a key of the custodian what it does not sign for yet: keys that `init` made as files."""
    listed = json.loads(cli("keys", "list", "--json"))
    for purpose, hours in OVERLAP_HOURS.items():
        wanted = f"KEY_PURPOSE_{purpose.upper()}"
        ours = [one for one in listed["keys"] if one["purpose"] == wanted and one.get("custodyName")]
        if not any(one["state"] in COUNTS for one in ours):
            cli("keys", "rotate", purpose, "--overlap-hours", hours)
    return 0


def repeated(act: Callable[[], int]) -> int:
    """Do it again while a server is away, which the command line tells by ending with 4."""
    for _ in range(TRIES - 1):
        try:
            return act()
        except subprocess.CalledProcessError as error:
            if error.returncode != AWAY:
                raise
            time.sleep(PAUSE_SECONDS)
    return act()


def policy(folder: Path, servers: list[str]) -> int:
    """Write the bundles that are missing, and those that an earlier version of this wrote."""
    allowed = json.loads(os.environ.get("AF_CONTROL_ALLOWED_HTTP", "[]"))
    bundle = builtin_policy(allowed)
    content = opa_bundle(files=bundle.files, data_json=bundle.data_json, digest=bundle.digest)
    for server in servers:
        file, written = folder / f"{server}.tar.gz", folder / f"{server}.sha256"
        if file.exists() and (not written.exists() or written.read_text() != digest(file.read_bytes())):
            print(f"{file} is not of the policy that comes with the control plane; it stays")
            continue
        written.write_text(digest(content))
        fresh = file.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(file)
    return 0


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keys"]:
            sys.exit(repeated(keys))
        case ["policy", folder, *servers] if servers:
            sys.exit(policy(Path(folder), servers))
        case _:
            print(__doc__, file=sys.stderr)
            sys.exit(2)
