"""Writes what the product consists of, as CycloneDX 1.5: `python -m tests.tools.sbom UV [--to FILE]` (`make sbom`).

The Python packages as uv exports them from uv.lock (no development tools), and the crates that engine and worker
are compiled of, from their Cargo.lock with its checksums. A lock file names a few more than are linked: those of
other platforms, and of tests. The images carry the same document as /opt/agentfactory/sbom.json.
"""

import argparse
import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, Final

from tests.tools.locked import ROOT, RUST, crates

SBOM: Final = ROOT / "build" / "sbom.json"
ENGINE: Final = RUST[0]
EXTRAS: Final = ("--extra", "embedded", "--extra", "s3")
"""Of the image that makes backups: Postgres' programs, and the client of object stores."""


def python_part(uv: str) -> dict[str, Any]:
    """Return uv's document of what is shipped."""
    arguments = [uv, "export", "--frozen", "--no-dev", "--quiet", *EXTRAS, "--format", "cyclonedx1.5"]
    arguments += ["--preview-features", "sbom-export"]
    done = subprocess.run(arguments, check=True, cwd=ROOT, stdout=subprocess.PIPE, timeout=120)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def with_crates(document: dict[str, Any], lock: Path = ENGINE) -> dict[str, Any]:
    """Return the document with a component for each crate of a lock file that comes from a registry."""
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:cargo/{crate.name}@{crate.version}",
            "name": crate.name,
            "version": crate.version,
            "purl": f"pkg:cargo/{crate.name}@{crate.version}",
            "hashes": [{"alg": "SHA-256", "content": crate.sha256}],
        }
        for crate in crates(lock)
        if not crate.ours
    ]
    return {**document, "components": [*document["components"], *components]}


def settled(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document without the time of its making, and with a number that follows from what it says."""
    metadata = {key: value for key, value in document["metadata"].items() if key != "timestamp"}
    said = {**document, "metadata": metadata, "serialNumber": ""}
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(said, sort_keys=True))
    return {**said, "serialNumber": number.urn}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.sbom", description=__doc__)
    parser.add_argument("uv", help="the program")
    parser.add_argument("--to", type=Path, default=SBOM, help="(default: %(default)s)")
    given = parser.parse_args()
    document = settled(with_crates(python_part(given.uv)))
    given.to.parent.mkdir(parents=True, exist_ok=True)
    given.to.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{given.to}: {len(document['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main())
