"""Docker compose as the tests use it: one project of its own, every call bounded."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.stack.probe import free_ports

ROOT = Path(__file__).resolve().parents[2]
FILES = ("docker-compose.yml", "tests/platform/docker-compose.tests.yml")
MADE_HERE = ("postgres", "prometheus", "openbao", "opa", "collector", "zipkin")
API = "http://api:8000/v1/"
DOCKER_NETWORKS = ["172.16.0.0/12", "192.168.0.0/16"]
UP_SECONDS = 900
CALL_SECONDS = 400


def free_port() -> int:
    (port,) = free_ports(1)
    return port


@dataclass(slots=True, kw_only=True)
class Compose:
    project: str
    rest_port: int = field(default_factory=free_port)
    prometheus_port: int = field(default_factory=free_port)
    zipkin_port: int = field(default_factory=free_port)
    profile: str = "full"

    @property
    def environment(self) -> dict[str, str]:
        """What makes `docker compose` in any folder mean this project."""
        return {
            **os.environ,
            **{f"AF_{name.upper()}_IMAGE": f"agentfactory-test/{name}" for name in MADE_HERE},
            "AF_REST_PORT": str(self.rest_port),
            "AF_PROMETHEUS_PORT": str(self.prometheus_port),
            "AF_ZIPKIN_PORT": str(self.zipkin_port),
            "AF_ALLOWED_HTTP": json.dumps([f"GET {API}"]),
            "AF_ALLOWED_NETWORKS": json.dumps(DOCKER_NETWORKS),
            "COMPOSE_FILE": ":".join(str(ROOT / name) for name in FILES),
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_PROFILES": self.profile,
        }

    def shell(self, script: str, folder: Path, *, seconds: float = CALL_SECONDS) -> None:
        """Run a script as the documentation has it, in a folder of its reader."""
        done = subprocess.run(
            ["bash", "-euc", script],
            check=False,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            env=self.environment,
        )
        assert done.returncode == 0, f"{script}: {done.stdout}"

    def call(
        self, *arguments: str, seconds: float = CALL_SECONDS, check: bool = True, given: str | None = None
    ) -> str:
        """Run a compose command, with something on standard input, and return what it printed."""
        done = subprocess.run(
            ["docker", "compose", "--ansi", "never", *arguments],
            check=False,
            cwd=ROOT,
            input=given,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=self.environment,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"compose {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def up(self) -> None:
        """Start everything and wait until it is ready."""
        try:
            self.call("up", "--wait", "--quiet-pull", seconds=UP_SECONDS)
        except AssertionError as error:
            logs = self.call("logs", "--tail", "30", check=False)
            raise AssertionError(f"{error}\n{logs}") from None

    def down(self) -> None:
        """Remove everything, volumes included, and what was started beside the profile."""
        self.call("--profile", "*", "down", "--volumes", "--timeout", "5", "--remove-orphans")

    def cli(self, *arguments: str, mount: Path | None = None) -> Any:
        """Run a command of ours as the first administrator; returns its JSON."""
        return self._run(("cli",), arguments, mount)

    def owner(self, *arguments: str, mount: Path | None = None) -> Any:
        """The same with the root key and the database at hand."""
        return self._run(("--entrypoint", "agentfactory", "install"), arguments, mount)

    def _run(self, service: Sequence[str], arguments: Sequence[str], mount: Path | None) -> Any:
        folder = ("--volume", f"{mount}:/work", "--workdir", "/work") if mount is not None else ()
        *options, name = service
        return json.loads(
            self.call("run", "--rm", "--no-TTY", "--no-deps", *folder, *options, name, *arguments, "--json")
        )

    def make_agent(self, folder: Path, name: str, package: str) -> None:
        """Build, sign and publish the template whose source is `folder/package`, and make an agent of it."""
        for path in (folder, *(folder / package).rglob("*"), folder / package):
            path.chmod(0o777 if path.is_dir() else 0o644)
        self.cli("template", "build", package, "--out", ".", mount=folder)
        self.cli("template", "sign", f"{package}-1.0.0.template", "--key", "publisher.key", mount=folder)
        self.cli("template", "publish", f"{package}-1.0.0.template", mount=folder)
        self.cli("agent", "create", name, "--template", f"{package}@1.0.0")

    def containers(self) -> list[dict[str, Any]]:
        """Every container of the project, ended ones too."""
        lines = self.call("ps", "--all", "--format", "json").splitlines()
        return [json.loads(line) for line in lines]
