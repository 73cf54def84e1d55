"""What the two planes do not load: libraries that an installation may never use would cost each process memory."""

import subprocess
import sys

import pytest

UNUSED = {"alembic", "click", "httpx", "hvac", "opentelemetry", "requests", "rich", "typer"}
"""Clients of vaults, issuers, OPA servers, witnesses and collectors, and what comes with them."""


@pytest.mark.parametrize("program", ["control_plane.main", "data_plane.main"])
def test_plane_loads_no_client_before_it_is_configured(program: str) -> None:
    code = f"import sys, {program}; print(*sorted({UNUSED!r} & set(sys.modules)))"

    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert ended.stdout.split() == []
