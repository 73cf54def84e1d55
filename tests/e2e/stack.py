"""Real processes for end-to-end tests: Postgres, control planes, nodes, each started, killed and started again.

Everything listens on free loopback ports, lives below one temporary folder and dies with the test. Waits are
bounded; nothing sleeps to synchronise.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from agentfactory.v1 import executions_pb2, nodes_pb2

from cli.agents import create_with
from cli.client import Client, connect
from cli.keys import ensure_publisher_key
from cli.run import Request, execute_with, to_message
from cli.settings import CliSettings
from cli.stack import local, postgres, probe
from cli.stack.children import Child, ChildSpec, spawn, stop
from cli.templates import publish_with
from data_plane.compiler.keys import ensure_compiler_key
from shared.key_files import read_private_key
from shared.package_files import build_package, read_unsigned_package, write_envelope, write_package
from shared.packages import sign_package
from shared.paths import InstallationPaths, NodePaths
from shared.signatures import FileSigner

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
ACTOR = ROOT / "tests" / "guests" / "actor.wasm"
READY = timedelta(seconds=60)
EVENTUALLY = timedelta(seconds=60)
POLL_SECONDS = 0.05
ENDED = frozenset(range(executions_pb2.EXECUTION_STATE_SUCCEEDED, executions_pb2.EXECUTION_STATE_LOST + 1))
Execution = executions_pb2.Execution


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str

    def json(self) -> dict:
        return json.loads(self.out)


@dataclass(slots=True, kw_only=True)
class TestNode:
    """One node of a stack, running or not."""

    __test__ = False

    paths: NodePaths
    admin_port: int
    log: Path
    child: Child | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def node_id(self) -> str:
        return local.read_node_id(self.paths)

    @property
    def running(self) -> Child:
        assert self.child is not None
        return self.child


@dataclass(slots=True, kw_only=True)
class TestStack:
    """The system under test."""

    __test__ = False

    folder: Path
    database: postgres.PostgresFiles
    postgres: Child
    ports: local.Ports
    control_plane: Child | None = None
    nodes: list[TestNode] = field(default_factory=list)
    compilers: list[TestNode] = field(default_factory=list)
    control_environment: Mapping[str, str] = field(default_factory=dict)
    """AF_CONTROL_… variables."""

    @property
    def paths(self) -> InstallationPaths:
        return InstallationPaths(data_dir=self.folder / "data")

    @property
    def settings(self) -> CliSettings:
        return CliSettings(
            data_dir=self.paths.data_dir,
            target=f"localhost:{self.ports.grpc}",
            call_timeout=timedelta(seconds=10),
        )

    # --- parts ---

    async def start_control_plane(self) -> None:
        self.control_plane = await local.start_control_plane(
            self.paths.data_dir, self.ports, self.database, **self.control_environment
        )
        await probe.wait_until_ready(self.control_plane, self.ports.control_admin, within=READY)

    async def kill_control_plane(self) -> None:
        assert self.control_plane is not None
        await kill(self.control_plane)

    async def add_node(self, **environment: str) -> TestNode:
        """Enroll and start a node; `environment` holds AF_NODE_… variables."""
        number = len(self.nodes)
        data = self.folder / f"node-{number}"
        data.mkdir()
        shutil.copy(self.paths.node.trust, data / "trust.json")
        (port,) = probe.free_ports(1)
        node = TestNode(
            paths=NodePaths(data_dir=data),
            admin_port=port,
            log=self.paths.data_dir / "logs" / f"node-{number}.log",
            environment=environment,
        )
        self.nodes.append(node)
        await local.enroll_node(node.paths, self.settings, self.ports)
        await self.start_node(node)
        return node

    async def start_node(self, node: TestNode) -> None:
        node.child = await local.start_node(
            node.paths, self.ports.grpc, node.admin_port, node.log, **node.environment
        )
        await probe.wait_until_ready(node.child, node.admin_port, within=READY)

    async def add_compiler(self, **environment: str) -> TestNode:
        """Enroll and start a node that compiles; `environment` holds AF_COMPILER_… variables. Its key is trusted."""
        number = len(self.compilers)
        data = self.folder / f"compiler-{number}"
        data.mkdir()
        shutil.copy(self.paths.node.trust, data / "trust.json")
        (port,) = probe.free_ports(1)
        node = TestNode(
            paths=NodePaths(data_dir=data),
            admin_port=port,
            log=self.paths.data_dir / "logs" / f"compiler-{number}.log",
            environment=environment,
        )
        self.compilers.append(node)
        await local.enroll_node(node.paths, self.settings, self.ports, duty="compile")
        ensure_compiler_key(data / "compiler.key")
        await self.cli("keys", "rotate", "compiler", "--public-key", str(data / "compiler.pub"))
        await self.start_compiler(node)
        return node

    async def start_compiler(self, node: TestNode) -> None:
        variables = {
            "AF_COMPILER_DATA_DIR": str(node.paths.data_dir),
            "AF_COMPILER_CONTROL_PLANES": f'["localhost:{self.ports.grpc}"]',
            "AF_COMPILER_ADMIN_PORT": str(node.admin_port),
            "AF_COMPILER_POLL_S": "0.2",
        }
        node.child = await spawn(
            ChildSpec(
                name="compiler",
                arguments=[sys.executable, "-m", "data_plane.compiler", "run"],
                environment=local.child_environment(**(variables | node.environment)),
                log=node.log,
            )
        )
        await probe.wait_until_ready(node.child, node.admin_port, within=READY)

    async def stop_postgres(self) -> None:
        await stop(self.postgres)

    async def start_postgres(self) -> None:
        self.postgres = await postgres.start(self.database)

    async def close(self) -> None:
        children = [node.child for node in self.nodes + self.compilers] + [self.control_plane]
        for child in children:
            if child is not None and child.is_running:
                await kill(child)
        await stop(self.postgres)

    # --- use ---

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with connect(self.settings) as client:
            yield client

    async def cli(self, *arguments: str, stdin: bytes = b"", expect: int | None = 0) -> Finished:
        """Run the public command line as a process of its own."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AF_")}
        environment |= {
            "AF_CLI_DATA_DIR": str(self.paths.data_dir),
            "AF_CLI_TARGET": f"localhost:{self.ports.grpc}",
        }
        finished = await command(*arguments, stdin=stdin, environment=environment)
        if expect is not None:
            assert expect == finished.code, f"{arguments}: {finished.err}{finished.out}"
        return finished

    async def make_agent(
        self,
        name: str,
        module: Path = ACTOR,
        *,
        limits: str = "",
        capabilities: str = "",
        retry: str = "safe",
        profile: str = "default",
    ) -> None:
        """Build, sign and publish a template of this name around a module, and make the agent."""
        digest = await self.publish(
            name, module, limits=limits, capabilities=capabilities, retry=retry, profile=profile
        )
        async with self.client() as client:
            await create_with(client, name, digest, b"{}")

    async def publish(
        self,
        name: str,
        module: Path = ACTOR,
        *,
        version: str = "1.0.0",
        limits: str = "",
        capabilities: str = "",
        retry: str = "safe",
        profile: str = "default",
    ) -> str:
        """Build, sign and publish a template of this name and version; return its digest."""
        source = self.folder / "sources" / f"of-{name}-{version}"
        source.mkdir(parents=True)
        shutil.copy(module, source / "agent.wasm")
        (source / "agent.toml").write_text(
            f'[template]\nname = "{name}"\nversion = "{version}"\nmodule = "agent.wasm"\n'
            f'media_type = "application/json"\n[limits]\n{limits}\n[capabilities]\n{capabilities}\n'
            f'[run]\nprofile = "{profile}"\nretry = "{retry}"\n'
        )
        package = write_package(build_package(source), self.folder / "sources")
        signer = FileSigner(key=read_private_key(self.paths.publisher_key))
        write_envelope(package, (await sign_package(read_unsigned_package(package), [signer])).envelope)
        async with self.client() as client:
            return (await publish_with(client, package)).digest

    async def execute(
        self, agent: str, body: bytes, *, timeout_seconds: float = 30
    ) -> tuple[Execution, bytes]:
        async with self.client() as client:
            return await execute_with(client, new_request(agent, body, timeout_seconds))

    async def submit(self, agent: str, body: bytes, *, timeout_seconds: float = 120) -> str:
        async with self.client() as client:
            message = executions_pb2.SubmitExecutionRequest(
                execution=await to_message(client, new_request(agent, body, timeout_seconds))
            )
            answer = await client.executions.SubmitExecution(message, timeout=10)
            return answer.execution.execution_id

    async def get(self, execution_id: str) -> Execution:
        async with self.client() as client:
            request = executions_pb2.GetExecutionRequest(execution_id=execution_id)
            return (await client.executions.GetExecution(request, timeout=10)).execution

    async def wait_for_end(self, execution_id: str) -> Execution:
        return await eventually(
            lambda: self.get(execution_id),
            lambda execution: execution.state in ENDED,
            f"the end of {execution_id}",
        )

    async def wait_until_running(self, execution_id: str) -> Execution:
        return await eventually(
            lambda: self.get(execution_id),
            lambda execution: execution.state == executions_pb2.EXECUTION_STATE_RUNNING,
            f"the start of {execution_id}",
        )

    async def list_nodes(self) -> list[nodes_pb2.Node]:
        async with self.client() as client:
            answer = await client.fleet.ListNodes(nodes_pb2.ListNodesRequest(), timeout=10)
            return list(answer.nodes)


def new_request(agent: str, body: bytes, timeout_seconds: float) -> Request:
    return Request(
        agent=agent, body=body, request_id=str(uuid.uuid4()), timeout=timedelta(seconds=timeout_seconds)
    )


async def command(*arguments: str, stdin: bytes = b"", environment: dict[str, str] | None = None) -> Finished:
    """Run `agentfactory …` within a bound."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        cwd=ROOT,
    )
    async with asyncio.timeout(READY.total_seconds()):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return Finished(
        code=process.returncode, out=out.decode(errors="replace"), err=err.decode(errors="replace")
    )


async def eventually(
    read: Callable[[], Awaitable[T]], wanted: Callable[[T], bool], what: str, within: timedelta = EVENTUALLY
) -> T:
    """Return the first value that is wanted; reading again is the wait, and it is bounded."""
    value: T | None = None
    try:
        async with asyncio.timeout(within.total_seconds()):
            while True:
                value = await read()
                if wanted(value):
                    return value
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise AssertionError(f"{what} did not come within {within}; last seen: {value}") from None


async def kill(child: Child) -> None:
    """SIGKILL the process alone, as a crash would, and see it gone."""
    child.process.send_signal(signal.SIGKILL)
    await child.process.wait()


@asynccontextmanager
async def running_stack(
    *, nodes: int = 1, control: Mapping[str, str] | None = None, **node_environment: str
) -> AsyncIterator[TestStack]:
    """Run a whole system for the time of the context; on a failure its logs are shown."""
    folder = Path(tempfile.mkdtemp(prefix="agentfactory-e2e-"))
    folder.chmod(0o711)
    data = folder / "data"
    local.prepare_folder(data)
    database = postgres.locate(data)
    stack = TestStack(
        folder=folder,
        database=database,
        postgres=await postgres.start(database),
        ports=local.Ports.free(),
        control_environment=control or {},
    )
    try:
        ensure_publisher_key(stack.paths.publisher_key)
        await local.initialize(data, database.url(), stack.paths.publisher_public_key)
        await stack.start_control_plane()
        for _ in range(nodes):
            await stack.add_node(**node_environment)
        yield stack
    except BaseException:
        show_logs(data / "logs")
        raise
    finally:
        await stack.close()
        postgres.remove(data)
        shutil.rmtree(folder, ignore_errors=True)


def show_logs(logs: Path) -> None:
    for log in sorted(logs.glob("*.log")):
        print(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}", file=sys.stderr)  # noqa: T201
