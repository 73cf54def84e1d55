"""Writes build/sbom.json, what the product consists of: `python -m tests.tools.sbom UV` (`make sbom`).

CycloneDX 1.5: the Python packages as uv exports them from uv.lock (no development tools), and the crates that the
engine's workspace is built of, from its Cargo.lock. The images carry the first part as /opt/agentfactory/sbom.json.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.tools.locked import ROOT, RUST, crates

SBOM: Final = ROOT / "build" / "sbom.json"
ENGINE: Final = RUST[0]


def python_part(uv: str) -> dict[str, Any]:
    """Return uv's document of what is shipped."""
    arguments = [uv, "export", "--frozen", "--no-dev", "--quiet", "--format", "cyclonedx1.5"]
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
        }
        for crate in crates(lock)
        if not crate.ours
    ]
    return {**document, "components": [*document["components"], *components]}


def main() -> int:
    document = with_crates(python_part(sys.argv[1]))
    SBOM.parent.mkdir(exist_ok=True)
    SBOM.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{SBOM.relative_to(ROOT)}: {len(document['components'])} components")
    return 0


if __name__ == "__main__":
    sys.exit(main())
