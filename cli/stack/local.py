"""The whole system on one machine: Postgres, control plane and one node, each a process of its own.

Starts them in order, makes the installation and the identity of the node when they are missing, and stops
them in the opposite order. Restarts nothing: a process that dies ends the stack, with a line that says why.
"""

import asyncio
import fcntl
import importlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NoReturn

from cli.keys import ensure_publisher_key
from cli.settings import CliSettings
from cli.stack import postgres, probe
from cli.stack.children import Child, ChildSpec, spawn, stop
from cli.state import LOCK_FILE, Stack, read_stack, remove_stack, write_stack
from shared.errors import WrongStateError
from shared.key_files import write_secret_file
from shared.paths import InstallationPaths, NodePaths

READY_WITHIN: Final = timedelta(seconds=60)
ENROLL_TOKEN_LIFE: Final = timedelta(minutes=5)
SERVICE_ROLE: Final = "af_service"
GATEWAY: Final = "gateway"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Loopback ports of the stack."""

    grpc: int = 7443
    enroll: int = 7445
    control_admin: int = 7444
    node_admin: int = 7454
    gateway: int | None = None
    """REST; None: no gateway is started."""
    gateway_admin: int = 7464

    @classmethod
    def free(cls) -> "Ports":
        grpc, enroll, control_admin, node_admin = probe.free_ports(4)
        return cls(grpc=grpc, enroll=enroll, control_admin=control_admin, node_admin=node_admin)

    def require_free(self) -> None:
        """Raise PortInUseError when one of them is taken."""
        ports = [self.grpc, self.enroll, self.control_admin, self.node_admin]
        if self.gateway is not None:
            ports += [self.gateway, self.gateway_admin]
        for port in ports:
            probe.require_free(port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the start and how long it took."""

    name: str
    took: timedelta


@dataclass(slots=True, kw_only=True)
class LocalStack:
    """One running stack. Made by `running`."""

    data_dir: Path
    ports: Ports
    say: Say = field(repr=False)
    database: postgres.PostgresFiles = field(init=False)
    node_id: str = ""
    steps: list[Step] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    """In the order of their start."""

    @property
    def paths(self) -> InstallationPaths:
        return InstallationPaths(data_dir=self.data_dir)

    @property
    def settings(self) -> CliSettings:
        """Settings of a client of this stack."""
        return CliSettings(data_dir=self.data_dir, target=f"localhost:{self.ports.grpc}")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        took = timedelta(seconds=time.monotonic() - started)
        self.steps.append(Step(name=name, took=took))
        self.say(f"{name} ({took.total_seconds():.1f} s)")

    async def start(self) -> None:
        """Start everything.

        Raises:
            PortInUseError: A port is taken.
            UnavailableError: A part does not come up; the message names it and its log.
        """
        self.ports.require_free()
        with self.step("Postgres is up"):
            self.database = postgres.locate(self.data_dir)
            # Meanwhile the other core imports what the next step needs.
            libraries = asyncio.create_task(asyncio.to_thread(importlib.import_module, "control_plane.setup"))
            self.children.append(await postgres.start(self.database))
            await libraries
        await self._initialize()
        with self.step("control plane is ready"):
            child = await start_control_plane(self.data_dir, self.ports, self.database)
            self.children.append(child)
            await probe.wait_until_ready(child, self.ports.control_admin, within=READY_WITHIN)
        if self.ports.gateway is not None:
            # It imports its libraries while the node does.
            self.children.append(await start_gateway(self.data_dir, self.ports, self.ports.gateway))
        node = self.paths.node
        if not node.identity.exists():
            with self.step("node is enrolled"):
                await enroll_node(node, self.settings, self.ports)
        with self.step("node is ready"):
            child = await start_node(
                node, self.ports.grpc, self.ports.node_admin, self.data_dir / "logs" / "node.log"
            )
            self.children.append(child)
            await probe.wait_until_ready(child, self.ports.node_admin, within=READY_WITHIN)
        await self._gateway_ready()
        self.node_id = read_node_id(node)
        self._write_token()
        write_stack(self.data_dir, self._description())

    async def _initialize(self) -> None:
        publisher, _ = ensure_publisher_key(self.paths.publisher_key)
        first = not self.paths.keyset.exists()
        with self.step("installation is made" if first else "installation is found"):
            await initialize(self.data_dir, self.database.url(), self.paths.publisher_public_key)
        if first:
            self.say(f"  root key: {self.paths.root_key} (signs which keys count; keep a copy offline)")
            self.say(f"  publisher key: {self.paths.publisher_key} ({publisher.key_id[:19]}…)")

    async def _gateway_ready(self) -> None:
        for child in self.children:
            if child.spec.name == GATEWAY:
                with self.step("gateway is ready"):
                    await probe.wait_until_ready(child, self.ports.gateway_admin, within=READY_WITHIN)

    def _write_token(self) -> None:
        """Leave a token of the administrator in the data folder, for whoever may read it."""
        from cli.local_token import make_token
        from shared.local_tokens import MAX_LIFE

        token = make_token(self.paths, subject=self.settings.client, life=MAX_LIFE)
        self.paths.token.unlink(missing_ok=True)
        write_secret_file(self.paths.token, token.encode())

    def _description(self) -> Stack:
        pids = {child.spec.name: child.pid for child in self.children}
        return Stack(
            target=f"localhost:{self.ports.grpc}",
            enroll_target=f"localhost:{self.ports.enroll}",
            control_admin=f"127.0.0.1:{self.ports.control_admin}",
            node_admin=f"127.0.0.1:{self.ports.node_admin}",
            up_pid=os.getpid(),
            postgres_pid=pids["postgres"],
            control_plane_pid=pids["control plane"],
            node_pid=pids["node"],
            node_id=self.node_id,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            gateway=f"localhost:{self.ports.gateway}" if GATEWAY in pids else "",
            gateway_admin=f"127.0.0.1:{self.ports.gateway_admin}" if GATEWAY in pids else "",
            gateway_pid=pids.get(GATEWAY, 0),
        )

    async def wait_for_death(self) -> NoReturn:
        """Wait until a process ends that should run.

        Raises:
            UnavailableError: Always, naming it.
        """
        tasks = {asyncio.create_task(child.process.wait()): child for child in self.children}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        raise tasks[done.pop()].died()

    async def stop(self) -> None:
        """Stop what runs, last started first: the node drains, then the control plane, then Postgres."""
        remove_stack(self.data_dir)
        for child in reversed(self.children):
            if child.is_running:
                with self.step(f"{child.spec.name} has stopped"):
                    await stop(child)


@asynccontextmanager
async def running(data_dir: Path, ports: Ports, say: Say) -> AsyncIterator[LocalStack]:
    """Run the stack for the time of the context.

    Raises:
        WrongStateError: Another `up` runs on this data folder.
        AgentFactoryError: As `LocalStack.start`.
    """
    prepare_folder(data_dir)
    with locked(data_dir):
        stack = LocalStack(data_dir=data_dir, ports=ports, say=say)
        try:
            await stack.start()
            yield stack
        finally:
            await stack.stop()


def prepare_folder(data_dir: Path) -> None:
    """Make the data folder. Root's is passable, not readable, for others: Postgres runs as a system user."""
    data_dir.mkdir(parents=True, exist_ok=True)
    data_dir.chmod(0o711 if os.geteuid() == 0 else 0o700)


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this process.

    Raises:
        WrongStateError: Another process holds it.
    """
    with (data_dir / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = read_stack(data_dir)
            who = f" as process {other.up_pid} at {other.target}" if other else ""
            raise WrongStateError(
                f"'agentfactory up' runs on {data_dir} already{who}",
                hint="use it from here, stop it with Ctrl-C there, or name another --data-dir",
            ) from None
        yield


def child_environment(**variables: str) -> dict[str, str]:
    """Return this environment with ``variables``; what the user set for a plane stays above them."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AF_CLI_")}
    return variables | mine


async def start_control_plane(
    data_dir: Path, ports: Ports, database: postgres.PostgresFiles, **variables: str
) -> Child:
    """Start the control plane, with further AF_CONTROL_ variables; it is not ready yet."""
    return await spawn(
        ChildSpec(
            name="control plane",
            arguments=[sys.executable, "-m", "control_plane"],
            environment=child_environment(
                AF_CONTROL_DATA_DIR=str(data_dir),
                AF_CONTROL_DATABASE_URL=database.url(user=SERVICE_ROLE),
                AF_CONTROL_PORT=str(ports.grpc),
                AF_CONTROL_ENROLL_PORT=str(ports.enroll),
                AF_CONTROL_ADMIN_PORT=str(ports.control_admin),
                AF_CONTROL_CACHE_LIFE="PT60S",
                **variables,
            ),
            log=data_dir / "logs" / "control-plane.log",
        )
    )


async def start_gateway(data_dir: Path, ports: Ports, port: int, **variables: str) -> Child:
    """Start a gateway on a port, with further AF_GATEWAY_ variables; it is not ready yet."""
    return await spawn(
        ChildSpec(
            name=GATEWAY,
            arguments=[sys.executable, "-m", "control_plane.gateway"],
            environment=child_environment(
                AF_GATEWAY_DATA_DIR=str(data_dir),
                AF_GATEWAY_CONTROL_PLANE=f"localhost:{ports.enroll}",
                AF_GATEWAY_PORT=str(port),
                AF_GATEWAY_ADMIN_PORT=str(ports.gateway_admin),
                **variables,
            ),
            log=data_dir / "logs" / "gateway.log",
        )
    )


async def start_node(paths: NodePaths, grpc_port: int, admin_port: int, log: Path, **variables: str) -> Child:
    """Start an enrolled node, with further AF_NODE_ variables, which win; it is not ready yet."""
    mine = {
        "AF_NODE_DATA_DIR": str(paths.data_dir),
        "AF_NODE_CONTROL_PLANES": f'["localhost:{grpc_port}"]',
        "AF_NODE_ADMIN_PORT": str(admin_port),
    }
    return await spawn(
        ChildSpec(
            name="node",
            arguments=[sys.executable, "-m", "data_plane", "run"],
            environment=child_environment(**(mine | variables)),
            log=log,
        )
    )


async def enroll_node(paths: NodePaths, settings: CliSettings, ports: Ports, duty: str = "run") -> None:
    """Give the node of a folder its identity, with a token made for this purpose.

    Raises:
        AgentFactoryError: As the control plane said.
    """
    # In this process: one of its own would spend a second and a half on imports.
    from cli.nodes import Duty, create_token_with
    from data_plane.enrollment import enroll
    from shared.trust import read_trust

    made = await create_token_with(settings, ttl=ENROLL_TOKEN_LIFE, duty=Duty(duty))
    target = f"localhost:{ports.enroll}"
    await enroll(paths=paths, trust=read_trust(paths.trust), target=target, token=made.token)


def read_node_id(paths: NodePaths) -> str:
    import json

    return str(json.loads(paths.identity.read_text(encoding="utf-8"))["node_id"])


async def initialize(data_dir: Path, owner_url: str, publisher: Path) -> None:
    """Make the installation if it is missing, and trust the publisher."""
    # Late: the database's libraries take a second to import, which clients never need.
    from control_plane.installation.domain import InitRequest
    from control_plane.setup import add_publisher
    from control_plane.setup import initialize as make_installation
    from shared.key_files import read_public_key

    await make_installation(InitRequest(data_dir=data_dir, owner_database_url=owner_url))
    # One that was revoked stays so: what it signed is refused, and the stack starts all the same.
    with suppress(WrongStateError):
        await add_publisher(
            paths=InstallationPaths(data_dir=data_dir),
            owner_database_url=owner_url,
            publisher=read_public_key(publisher),
        )
