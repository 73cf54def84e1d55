"""docker-compose.yml as `docker compose config` reads it, by its own library, in every run and without an engine."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.go_programs import go_program

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "tests" / "compose_go"
FILE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
RUN_SECONDS = 30
PROFILES = ("full", "minimal")


def config(file: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Load a compose file as `docker compose config` does."""
    return subprocess.run(
        [go_program(SOURCES, "compose-config"), file],
        check=False,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_it_is_taken_and_runs_what_its_profile_has(profile):
    done = config(ROOT / "docker-compose.yml", COMPOSE_PROFILES=profile)
    assert done.returncode == 0, done.stderr
    project = yaml.safe_load(done.stdout)
    assert project["name"] == "agentfactory"
    assert project["services"].keys() == {
        name for name, one in FILE["services"].items() if profile in one.get("profiles", PROFILES)
    }
    for name, service in project["services"].items():
        assert "$" not in service["image"], name
        assert service.get("networks") or service["network_mode"] == "none", name
    # Of docker/profiles.
    assert ("AF_CONTROL_OPA_URLS" in project["services"]["control-plane-1"]["environment"]) is (
        profile == "full"
    )


def test_without_a_variable_it_is_the_profile_of_the_file_beside_it():
    done = config(ROOT / "docker-compose.yml")
    assert "opa-1" in yaml.safe_load(done.stdout)["services"]


def test_another_profile_is_refused():
    done = config(ROOT / "docker-compose.yml", COMPOSE_PROFILES="fulll")
    assert done.returncode == 1
    assert "fulll" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    restart: unless-stopped\n", "    restarts: unless-stopped\n", "restarts"),
        ("services:\n", "service:\n", "service"),
        ("  pids_limit: 1024\n", "  pids_limit: many\n", "pids_limit"),
        ("    networks: [edge]\n", "    networks: [edg]\n", "edg"),
        ("      - grafana:/var/lib/grafana\n", "      - grafan:/var/lib/grafana\n", "grafan"),
        ("    depends_on: [prometheus]\n", "    depends_on: [prometheu]\n", "prometheu"),
        ("required: false}\n", "required: true}\n", "depends on undefined service"),
        ("condition: service_healthy}\n", "condition: service_well}\n", "condition"),
        ("${AF_SLOTS:-2}", "${AF_SLOTS:?say how many}", "say how many"),
        ("${AF_SLOTS:-2}", "${AF_SLOTS:-2", "AF_SLOTS"),
        ("interval: 3s\n", "interval: soon\n", "soon"),
        ('mode=1777,size=64m,noexec,nosuid,nodev"]', 'mode=1777,size=64m,noexec,nosuid,nodev"', ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(tmp_path: Path, old: str, new: str, said: str):
    text = (ROOT / "docker-compose.yml").read_text()
    assert old in text
    (tmp_path / "docker-compose.yml").write_text(text.replace(old, new))
    shutil.copytree(ROOT / "docker" / "profiles", tmp_path / "docker" / "profiles")
    done = config(
        tmp_path / "docker-compose.yml", COMPOSE_PROFILES="minimal" if "required" in old else "full"
    )
    assert done.returncode == 1, done.stdout
    assert said in done.stderr
