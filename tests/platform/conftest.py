"""The Docker engine and the images, once for a session."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.platform.compose import Compose
from tests.platform.prepare import ROOT, prepare

CACHE = Path(os.environ.get("AF_CACHE_DIR") or Path.home() / ".cache" / "agentfactory")
BUILD_SECONDS = 600


@pytest.fixture(scope="session")
def docker() -> None:
    """A running engine with our images in it."""
    prepare()


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
    subprocess.run(
        [ROOT / "examples" / "redact" / "build.sh"],
        check=True,
        timeout=BUILD_SECONDS,
        env={"ZIG_GLOBAL_CACHE_DIR": str(CACHE / "zig"), **os.environ},
    )
    shutil.copytree(ROOT / "examples" / "redact", folder / "redact")
    folder.chmod(0o777)
    compose.cli("keys", "init", "--out", "publisher.key", mount=folder)
    compose.owner("keys", "trust", "publisher.pub", mount=folder)
    compose.make_agent(folder, "desk", "redact")
