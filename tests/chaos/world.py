"""The system that faults are done to: two control planes, four nodes, Postgres; each a process of its own.

Callers know both control planes; half of the nodes starts with the one, half with the other. Everything listens
on free loopback ports and lives below one temporary folder. What a fault needs beside it (proxies, a standby, a
small disk, other compositions) is named by `Needs`.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cli.client import Client, connect
from cli.keys import ensure_publisher_key
from cli.settings import CliSettings
from cli.stack import local, postgres, probe
from cli.stack.children import Child, ChildSpec, spawn, stop
from shared.paths import InstallationPaths, NodePaths
from tests.chaos.proxy import Place, Proxy, TcpPlace, UnixPlace
from tests.chaos.standby import Standby, connected, follow
from tests.e2e.stack import READY, TestStack, kill, show_logs

REPLICAS = 2
NODES = 4
SLOTS = 2
AGENT = "actor"
POSTGRES_SOCKET = ".s.PGSQL.5432"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a fault needs of the world beside the usual."""

    stream_proxy: bool = False
    """The first node reaches both control planes through proxies of ours."""
    database_proxy: bool = False
    """The control planes reach Postgres through a proxy of ours."""
    standby: bool = False
    """Postgres has a synchronous standby."""
    node_disk_mib: int = 0
    """The first node's data folder is a file system of its own, of this size."""
    control_plane: str = "control_plane"
    """Module that is run as a control plane."""
    node: str = "data_plane"
    """Module that is run as a node."""


@dataclass(slots=True, kw_only=True)
class Replica:
    """One control plane."""

    ports: local.Ports
    log: Path
    child: Child | None = None

    @property
    def running(self) -> Child:
        assert self.child is not None
        return self.child


@dataclass(slots=True, kw_only=True)
class ChaosNode:
    """One node."""

    paths: NodePaths
    targets: Sequence[str]
    admin_port: int
    log: Path
    child: Child | None = None

    @property
    def node_id(self) -> str:
        return local.read_node_id(self.paths)

    @property
    def running(self) -> Child:
        assert self.child is not None
        return self.child


@dataclass(slots=True, kw_only=True)
class World:
    """What runs, and how to start and stop its parts."""

    folder: Path
    needs: Needs
    database: postgres.PostgresFiles
    postgres: Child
    replicas: list[Replica] = field(default_factory=list)
    nodes: list[ChaosNode] = field(default_factory=list)
    stream_proxies: list[Proxy] = field(default_factory=list)
    database_proxy: Proxy | None = None
    standby: Standby | None = None
    """The one that follows, until it is promoted."""
    mounts: list[Path] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def switch(self, process: str, name: str) -> Path:
        """A file that makes a process of our own composition do something wrong; see tests/chaos/processes."""
        return self.folder / "switches" / process / name

    @property
    def processes(self) -> dict[str, Child]:
        """Everything that runs, by name."""
        found = {"postgres": self.postgres}
        found |= {f"control plane {number}": each.running for number, each in enumerate(self.replicas)}
        found |= {f"node {number}": each.running for number, each in enumerate(self.nodes)}
        return found

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[list[Client]]:
        """A client of each control plane."""
        async with AsyncExitStack() as stack:
            settings = self.stack().settings
            yield [
                await stack.enter_async_context(
                    connect(replace_target(settings, f"localhost:{replica.ports.grpc}"))
                )
                for replica in self.replicas
            ]

    def stack(self) -> TestStack:
        """This world as the end-to-end tests know it: its first control plane."""
        return TestStack(
            folder=self.folder,
            database=self.database,
            postgres=self.postgres,
            ports=self.replicas[0].ports,
            control_plane=self.replicas[0].child,
        )

    @asynccontextmanager
    async def sql(self) -> AsyncIterator[Any]:
        """A connection of the database's owner, past every proxy."""
        async with connected(self.database) as connection:
            yield connection

    # --- parts

    def database_url(self) -> str:
        """The URL that control planes are given: with a standby, they find the primary of the two themselves."""
        if self.standby is not None:
            sockets = (self.database.socket, self.standby.files.socket)
            hosts = "&".join(f"host={quote(str(socket))}:5432" for socket in sockets)
            base = f"postgresql://{local.SERVICE_ROLE}@/{postgres.DATABASE}"
            return f"{base}?{hosts}&target_session_attrs=primary"
        if self.database_proxy is None:
            return self.database.url(user=local.SERVICE_ROLE)
        host = quote(str(self.folder / "way"))
        return f"postgresql://{local.SERVICE_ROLE}@/{postgres.DATABASE}?host={host}"

    async def launch_replica(self, replica: Replica) -> None:
        """Start a control plane; it is not ready yet."""
        replica.child = await spawn(
            ChildSpec(
                name="control plane",
                arguments=[sys.executable, "-m", self.needs.control_plane],
                environment=local.child_environment(
                    AF_CONTROL_DATA_DIR=str(self.data_dir),
                    AF_CONTROL_DATABASE_URL=self.database_url(),
                    AF_CONTROL_PORT=str(replica.ports.grpc),
                    AF_CONTROL_ENROLL_PORT=str(replica.ports.enroll),
                    AF_CONTROL_ADMIN_PORT=str(replica.ports.control_admin),
                    CHAOS_SWITCHES=str(self.switch(replica.log.stem, "")),
                ),
                log=replica.log,
            )
        )

    async def start_replica(self, replica: Replica) -> None:
        """Start a control plane and wait until it is ready."""
        await self.launch_replica(replica)
        await probe.wait_until_ready(replica.running, replica.ports.control_admin, within=READY)

    async def launch_node(self, node: ChaosNode) -> None:
        """Start a node; whether it becomes ready is another question."""
        node.child = await spawn(
            ChildSpec(
                name="node",
                arguments=[sys.executable, "-m", self.needs.node, "run"],
                environment=local.child_environment(
                    AF_NODE_DATA_DIR=str(node.paths.data_dir),
                    AF_NODE_CONTROL_PLANES=json.dumps(list(node.targets)),
                    AF_NODE_ADMIN_PORT=str(node.admin_port),
                    AF_NODE_SLOTS=str(SLOTS),
                    CHAOS_SWITCHES=str(self.switch(node.log.stem, "")),
                ),
                log=node.log,
            )
        )

    async def start_node(self, node: ChaosNode) -> None:
        """Start a node and wait until it is ready."""
        await self.launch_node(node)
        await probe.wait_until_ready(node.running, node.admin_port, within=READY)

    async def start_postgres(self) -> None:
        self.postgres = await postgres.start(self.database)

    async def stop_nodes(self) -> None:
        """Stop every node as an operator would, so that its spool can be read."""
        async with asyncio.TaskGroup() as group:
            for node in self.nodes:
                group.create_task(stop(node.running))

    # --- beginning and end

    async def _begin(self, stack: AsyncExitStack) -> None:
        ensure_publisher_key(self.paths.publisher_key)
        await local.initialize(self.data_dir, self.database.url(), self.paths.publisher_public_key)
        if self.needs.database_proxy:
            (self.folder / "way").mkdir()
            self.database_proxy = await stack.enter_async_context(
                Proxy(UnixPlace(self.folder / "way" / POSTGRES_SOCKET), self.database_place()).running()
            )
        if self.needs.standby:
            self.standby = await follow(self.database)
        async with asyncio.TaskGroup() as group:
            for number in range(REPLICAS):
                log = self.data_dir / "logs" / f"control-plane-{number}.log"
                self.replicas.append(Replica(ports=local.Ports.free(), log=log))
                group.create_task(self.start_replica(self.replicas[-1]))
        await self._add_nodes(stack)
        await self.stack().make_agent(AGENT)

    async def _add_nodes(self, stack: AsyncExitStack) -> None:
        targets = [f"localhost:{replica.ports.grpc}" for replica in self.replicas]
        for number in range(NODES):
            mine = targets
            if self.needs.stream_proxy and number == 0:
                mine = [await self._proxied(stack, replica) for replica in self.replicas]
            turned = number % len(mine)
            self.nodes.append(await self._enrolled(number, (*mine[turned:], *mine[:turned])))
        async with asyncio.TaskGroup() as group:
            for node in self.nodes:
                group.create_task(self.start_node(node))

    async def _proxied(self, stack: AsyncExitStack, replica: Replica) -> str:
        (port,) = probe.free_ports(1)
        proxy = Proxy(TcpPlace(port), TcpPlace(replica.ports.grpc))
        self.stream_proxies.append(await stack.enter_async_context(proxy.running()))
        return f"localhost:{port}"

    async def _enrolled(self, number: int, targets: Sequence[str]) -> ChaosNode:
        data = self.folder / f"node-{number}"
        data.mkdir()
        if self.needs.node_disk_mib and number == 0:
            mount_small_disk(data, self.needs.node_disk_mib)
            self.mounts.append(data)
        shutil.copy(self.paths.node.trust, data / "trust.json")
        (port,) = probe.free_ports(1)
        log = self.data_dir / "logs" / f"node-{number}.log"
        node = ChaosNode(paths=NodePaths(data_dir=data), targets=targets, admin_port=port, log=log)
        await local.enroll_node(node.paths, self.stack().settings, self.replicas[0].ports)
        return node

    @property
    def paths(self) -> InstallationPaths:
        return InstallationPaths(data_dir=self.data_dir)

    def database_place(self) -> Place:
        """Where Postgres listens now."""
        return UnixPlace(self.database.socket / POSTGRES_SOCKET)

    async def _end(self) -> None:
        children = [node.child for node in self.nodes] + [replica.child for replica in self.replicas]
        for child in children:
            if child is not None and child.is_running:
                await kill(child)
        if self.standby is not None:
            await stop(self.standby.child)
        await stop(self.postgres)
        for mount in self.mounts:
            await asyncio.to_thread(subprocess.run, ["umount", "-l", str(mount)], check=False, timeout=10)


def replace_target(settings: CliSettings, target: str) -> CliSettings:
    return settings.model_copy(update={"target": target, "call_timeout": timedelta(seconds=10)})


def mount_small_disk(folder: Path, mib: int) -> None:
    """Make a file system of its own of a folder; needs root."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tmpfs", str(folder)]
    subprocess.run(command, check=True, timeout=10, capture_output=True)


@asynccontextmanager
async def running_world(needs: Needs) -> AsyncIterator[World]:
    """Run a whole system for the time of the context; when that fails, the ends of its logs are shown."""
    folder = Path(tempfile.mkdtemp(prefix="agentfactory-chaos-"))
    folder.chmod(0o711)
    data = folder / "data"
    local.prepare_folder(data)
    database = postgres.locate(data)
    world = World(folder=folder, needs=needs, database=database, postgres=await postgres.start(database))
    async with AsyncExitStack() as stack:
        try:
            await world._begin(stack)
            yield world
        except BaseException:
            show_logs(data / "logs")
            raise
        finally:
            await world._end()
            postgres.remove(data)
            shutil.rmtree(folder, ignore_errors=True)
