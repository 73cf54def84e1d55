"""Builds the site of docs/ into build/site: `python -m tests.tools.docs_site` (`make docs`).

Exit code 1 when a link leads nowhere, a generated page is not up to date, or a page would load anything from another
host: who reads it has no internet, or does not want to be seen.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from os import environ
from pathlib import Path
from typing import Final

from tests.tools import reference
from tests.tools.locked import ROOT

SITE: Final = ROOT / "build" / "site"
LONGEST_SECONDS: Final = 300
LOADED: Final = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\ssrc=["']?(?:https?:)?//[^"'>\s]+"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*\shref=["']?(?:https?:)?//[^"'>\s]+"""
    r"""|@import\s+url\(["']?(?:https?:)?//[^)]+"""
)


def loaded_from_elsewhere(site: Path) -> Iterator[str]:
    """Return page and tag of whatever a browser would fetch from another host by itself."""
    for page in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        for found in LOADED.findall(page.read_text(encoding="utf-8")):
            yield f"{page.relative_to(site)}: {found}"


def build(config: Path, site: Path) -> int:
    """Run mkdocs; every warning is an error. Not with its `--quiet`: that hides warnings from `--strict` as well."""
    arguments = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    environment = {**environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*arguments, "--site-dir", str(site)],
        check=False,
        cwd=ROOT,
        env=environment,
        timeout=LONGEST_SECONDS,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        print("".join(line for line in done.stderr.splitlines(keepends=True) if not line.startswith("INFO")))
    return done.returncode


def main() -> int:
    old = reference.drifted()
    for name in old:
        print(f"docs/reference/{name} is out of date; run: python -m tests.tools.reference", file=sys.stderr)
    code = build(ROOT / "mkdocs.yml", SITE)
    loaded = [] if code else list(loaded_from_elsewhere(SITE))
    for line in loaded:
        print(f"loaded from elsewhere: {line}", file=sys.stderr)
    if code or old or loaded:
        return 1
    print(f"{SITE.relative_to(ROOT)}: {len(list(SITE.rglob('*.html')))} pages; start with index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
