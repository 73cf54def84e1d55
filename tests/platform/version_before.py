"""Processes of an earlier version of this repository, started from its own code on today's schema."""

import subprocess
import sys
from pathlib import Path

from cli.stack import local
from cli.stack.children import Child, ChildSpec, spawn
from cli.stack.probe import wait_until_ready
from tests.e2e.stack import READY, ROOT, TestStack

REVISION = "92b324bd45ddf200f94d369acef5519321f9baa6"
"""The first version that starts on a newer schema which still serves it; raised when that schema ends it."""
SCHEMA = "0023"
PARTS = ("control_plane", "data_plane", "shared", "protos/gen", ":(exclude)data_plane/engine")
SECONDS = 120


def unpack(folder: Path) -> Path:
    """Put the code of that version below a folder; without the repository's history this fails."""
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", REVISION, *PARTS], check=True, capture_output=True, timeout=SECONDS
    ).stdout
    subprocess.run(["tar", "--extract", "--directory", folder], input=archive, check=True, timeout=SECONDS)
    return folder


def imports_from(code: Path) -> dict[str, str]:
    """Return what makes Python take these packages from there, and nothing from the current folder.

    As the environment of a `TestNode` it makes a node of that version.
    """
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{code}:{code / 'protos' / 'gen'}"}


def newest_schema(code: Path) -> str:
    """Return which schema the code was written for: what it says itself, in a process of its own."""
    program = "from control_plane.database.migrate import newest_revision; print(newest_revision())"
    return subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=imports_from(code),
    ).stdout.strip()


async def start_control_plane(code: Path, stack: TestStack, ports: local.Ports) -> Child:
    """Start a control plane of that code on the database and the files of a stack; it is ready on return."""
    child = await spawn(
        ChildSpec(
            name="control plane of the version before",
            arguments=[sys.executable, "-m", "control_plane"],
            environment=local.child_environment(
                AF_CONTROL_DATA_DIR=str(stack.paths.data_dir),
                AF_CONTROL_DATABASE_URL=stack.database.url(user=local.SERVICE_ROLE),
                AF_CONTROL_PORT=str(ports.grpc),
                AF_CONTROL_ENROLL_PORT=str(ports.enroll),
                AF_CONTROL_ADMIN_PORT=str(ports.control_admin),
            )
            | imports_from(code),
            log=stack.paths.data_dir / "logs" / "version-before.log",
        )
    )
    await wait_until_ready(child, ports.control_admin, within=READY)
    return child
