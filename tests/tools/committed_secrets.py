"""Finds secrets that were committed: `python -m tests.tools.committed_secrets`. Prints where, never what.

The detectors are those of detect-secrets for keys, tokens and passwords in URLs. Those by entropy are left out: digests
are what this repository is full of. What tests and pages need (example keys, example URLs) is allowed one by one in
tests/tools/committed_secrets.allowed, a line each: the file, and a digest of what was found in it. `--allow` writes that file anew;
look at what it changes.
"""

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from detect_secrets.core.plugins.initialize import from_plugin_classname

from tests.tools.locked import ROOT

ALLOWED: Final = ROOT / "tests" / "tools" / "committed_secrets.allowed"
DETECTORS: Final = (
    *(
        "ArtifactoryDetector",
        "AWSKeyDetector",
        "AzureStorageKeyDetector",
        "BasicAuthDetector",
        "DiscordBotTokenDetector",
    ),
    *("GitHubTokenDetector", "GitLabTokenDetector", "JwtTokenDetector", "NpmDetector", "OpenAIDetector"),
    *("PrivateKeyDetector", "PypiTokenDetector", "SendGridDetector", "SlackDetector", "StripeDetector"),
    *("TelegramBotTokenDetector", "TwilioKeyDetector"),
)
MADE: Final = (".lock", ".wasm", ".png", ".binpb", ".sum", "package-lock.json")
"""Files that programs write; lock files are nothing but digests."""
KEY_CHARS: Final = 100
"""Of a private key: its head is the same in all of them."""
GENERATED: Final = ("protos/gen/", "docs/reference/")


def committed() -> list[str]:
    """Return the files that git knows, but those that programs make."""
    done = subprocess.run(["git", "ls-files", "-z"], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    names = [name for name in done.stdout.split("\0") if name and not name.endswith(MADE)]
    return [name for name in names if not name.startswith(GENERATED) and (ROOT / name).is_file()]


def scan(names: Iterable[str], root: Path = ROOT) -> list[tuple[str, str, int]]:
    """Return file, digest and line of whatever looks like a secret. A file is matched as a whole: lines cost ten times that."""
    detectors = [from_plugin_classname(name) for name in DETECTORS]
    found = set()
    for name in names:
        text = (root / name).read_text(encoding="utf-8", errors="replace")
        for detector in detectors:
            for value in detector.analyze_string(text):
                for place in re.finditer(re.escape(value), text):
                    behind = text[place.start() :][:KEY_CHARS] if value.endswith("PRIVATE KEY") else value
                    digest = hashlib.sha256(f"{detector.secret_type}\0{behind}".encode()).hexdigest()[:32]
                    found.add((name, digest, text.count("\n", 0, place.start()) + 1))
    return sorted(found)


def not_allowed(found: Iterable[tuple[str, str, int]], allowed: set[tuple[str, str]]) -> Iterator[str]:
    """Return a line for each that is not allowed, and for each allowed one that is gone."""
    seen = set()
    for name, digest, line in found:
        seen.add((name, digest))
        if (name, digest) not in allowed:
            yield f"{name}:{line}: looks like a secret; take it out (and revoke it: history keeps it), or see --allow"
    for name, digest in sorted(allowed - seen):
        yield f"{name}: {digest} in {ALLOWED.name} is not there any more; run: python -m tests.tools.committed_secrets --allow"


def read_allowed() -> set[tuple[str, str]]:
    """Return file and digest of what is allowed."""
    lines = ALLOWED.read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#")]
    return {(name, digest) for digest, name in pairs}


def main() -> int:
    names = committed()
    found = scan(names)
    if sys.argv[1:] == ["--allow"]:
        lines = sorted(
            {f"{digest} {name}" for name, digest, _ in found}, key=lambda line: line.split(" ")[::-1]
        )
        ALLOWED.write_text(
            "# Made by `python -m tests.tools.committed_secrets --allow`.\n" + "\n".join(lines) + "\n"
        )
        return 0
    lines = list(not_allowed(found, read_allowed()))
    print(
        "\n".join(lines)
        if lines
        else f"{len(names)} files, no secrets but the {len(read_allowed())} allowed examples"
    )
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
