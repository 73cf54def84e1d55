"""What stands behind KWOK's pods: real control planes, a service that leads to those of its colour, and its jobs.

KWOK's pods carry no traffic and run nothing. So each colour has one real process; the service forwards each new
connection to the colour that the API server says it leads to; and the programs of the chart's jobs are run here, with
the arguments of their pods, against those processes. How they end is what their pods say.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from cli.settings import CliSettings
from cli.stack import local, probe
from cli.stack.children import Child, stop
from tests.e2e.stack import READY, ROOT, TestStack, kill, running_stack
from tests.platform import version_before
from tests.platform.cluster import COMPONENT, PLAYED, Cluster, is_ready

NAMESPACE = "agents"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
LOOK_SECONDS = 0.2
JOB_SECONDS = 90
JOBS = f"{COMPONENT} in ({','.join(PLAYED)})"
CLI = Path(sys.executable).with_name("agentfactory")


def leads_to(cluster: Cluster, service: str = "af-control-plane") -> set[str]:
    """Return the colours of the ready pods behind a service."""
    names = [
        one["targetRef"]["name"]
        for found in cluster.get(SLICES, f"kubernetes.io/service-name={service}")
        for one in found["endpoints"] or ()
        if one["conditions"]["ready"]
    ]
    return {colour for colour in ("blue", "green") for name in names if f"-{colour}-" in name}


def pods(cluster: Cluster, component: str) -> list[dict[str, Any]]:
    """Return the pods of a component that are not on their way out."""
    found = cluster.get(PODS, f"{COMPONENT}={component}")
    return [one for one in found if "deletionTimestamp" not in one["metadata"]]


def ready(cluster: Cluster, component: str) -> int:
    return sum(map(is_ready, pods(cluster, component)))


@dataclass(slots=True)
class Relay:
    """Forwards connections to wherever `target` says at that moment; none: refuses. Can cut them all."""

    target: Callable[[], tuple[str, int] | Path | None]
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        target = self.target()
        try:
            if target is not None:
                with suppress(OSError):
                    await self._join(target, reader, writer)
        except asyncio.CancelledError:
            pass  # cut, or the test is over
        finally:
            self.tasks.discard(task)
            writer.close()

    async def _join(
        self, target: tuple[str, int] | Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if isinstance(target, Path):
            there, back = await asyncio.open_unix_connection(target)
        else:
            there, back = await asyncio.open_connection(*target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, back))
                group.create_task(_copy(there, writer))
        finally:
            back.close()

    def cut(self) -> None:
        for task in tuple(self.tasks):
            task.cancel()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass(slots=True, kw_only=True)
class Colours:
    """The real processes of both colours, and what leads to them."""

    cluster: Cluster
    stack: TestStack
    code_before: Path
    ports: dict[str, local.Ports]
    children: dict[str, Child] = field(default_factory=dict)
    port: int = 0
    """Of the active service."""
    active: str | None = None
    led: list[str | None] = field(default_factory=list)
    """Where it led, each change."""
    relay: Relay = field(init=False)

    def __post_init__(self) -> None:
        self.relay = Relay(self._active_address)

    @property
    def settings(self) -> CliSettings:
        """Those of callers, who know the service alone."""
        return self.stack.settings.model_copy(update={"target": f"localhost:{self.port}"})

    def _active_address(self) -> tuple[str, int] | None:
        return None if self.active is None else ("127.0.0.1", self.ports[self.active].grpc)

    async def start(self, colour: str, database_socket: Path | None = None) -> None:
        """Start the process of a colour if it does not run: blue is the version before, green that of now."""
        if colour in self.children and self.children[colour].is_running:
            return
        if colour == "blue":
            child = await version_before.start_control_plane(self.code_before, self.stack, self.ports["blue"])
        else:
            database = self.stack.database
            if database_socket is not None:
                database = replace(database, socket=database_socket)
            child = await local.start_control_plane(self.stack.paths.data_dir, self.ports["green"], database)
            await probe.wait_until_ready(child, self.ports["green"].control_admin, within=READY)
        self.children[colour] = child

    async def stop(self, colour: str) -> None:
        await stop(self.children[colour])

    async def kill(self, colour: str) -> None:
        await kill(self.children[colour])

    def node_of(self, colour: str) -> dict[str, str]:
        """Return the environment that makes a real node one of a colour's version."""
        service = {"AF_NODE_CONTROL_PLANES": f'["localhost:{self.port}"]'}
        return service | (version_before.imports_from(self.code_before) if colour == "blue" else {})

    async def roll_nodes(self, colour: str) -> None:
        """Start the real nodes anew, one after the other, as the StatefulSet does when its image changes."""
        for node in self.stack.nodes:
            await stop(node.running)
            node.environment = self.node_of(colour)
            await self.stack.start_node(node)

    async def follow(self) -> None:
        """Be the service: keep looking which colour it leads to."""
        while True:
            with suppress(httpx.TransportError):
                self.active = min(await asyncio.to_thread(leads_to, self.cluster), default=None)
                if self.led[-1:] != [self.active]:
                    self.led.append(self.active)
            await asyncio.sleep(LOOK_SECONDS)

    async def play_jobs(self) -> None:
        """Be the kubelet of the jobs: run their programs and report how they ended."""
        done: set[str] = set()
        while True:
            with suppress(httpx.TransportError):
                for pod in await asyncio.to_thread(self.cluster.get, PODS, JOBS):
                    if pod["status"]["phase"] == "Running" and pod["metadata"]["uid"] not in done:
                        done.add(pod["metadata"]["uid"])
                        status = ended(pod, await self._play(pod))
                        path = f"{PODS}/{pod['metadata']['name']}"
                        await asyncio.to_thread(self.cluster.patch_status, path, status)
            await asyncio.sleep(LOOK_SECONDS)

    async def _play(self, pod: dict[str, Any]) -> int:
        container = pod["spec"]["containers"][0]
        if container["name"] == "smoke-test":
            program, host, *agent = container["command"]
            arguments = ["sh", str(ROOT / "docker" / program), host, *agent]
        else:
            *options, target = container["args"]
            host = target.partition(":")[0]
            arguments = [sys.executable, str(ROOT / "docker" / "error_rate.py"), *options]
        colours = leads_to(self.cluster, host)
        if not colours:
            return 1
        ports = self.ports[colours.pop()]
        if container["name"] != "smoke-test":
            arguments.append(f"127.0.0.1:{ports.control_admin}")
        process = await asyncio.create_subprocess_exec(*arguments, env=self._environment(ports, pod))
        async with asyncio.timeout(JOB_SECONDS):
            return await process.wait()

    def _environment(self, ports: local.Ports, pod: dict[str, Any]) -> dict[str, str]:
        """Return one where names of services lead to ports of this machine: pods have DNS for that.

        Its keys are those that the pod is given, and no others.
        """
        shim = self.stack.folder / "programs" / "agentfactory"
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(f'#!/bin/sh\nAF_CLI_TARGET=localhost:{ports.grpc} exec {CLI} "$@"\n')
        shim.chmod(0o755)
        return {
            **os.environ,
            "PATH": f"{shim.parent}:{os.environ['PATH']}",
            "AF_CLI_DATA_DIR": str(self._keys_of(pod)),
            **{one["name"]: one["value"] for one in pod["spec"]["containers"][0].get("env", ())},
        }

    def _keys_of(self, pod: dict[str, Any]) -> Path:
        """Return a folder as the init container leaves it."""
        folder = self.stack.folder / "pods" / pod["metadata"]["uid"]
        handed, placed = folder / "handed", folder / "placed"
        placed.mkdir(parents=True)
        handed.mkdir()
        for volume in pod["spec"]["volumes"]:
            for item in volume.get("secret", {}).get("items", ()):
                kept = self.stack.paths.data_dir / item["key"].replace("clients.", "clients/", 1)
                shutil.copy(kept, handed / item["path"])
        if any(handed.iterdir()):
            subprocess.run(
                [ROOT / "docker" / "place-keys.sh", handed, placed], check=True, timeout=JOB_SECONDS
            )
        return placed


def ended(pod: dict[str, Any], code: int) -> dict[str, Any]:
    """Return the status of a pod whose containers ended with a code."""
    reason = "Completed" if code == 0 else "Error"
    containers = [
        {**one, "ready": False, "state": {"terminated": {"exitCode": code, "reason": reason}}}
        for one in pod["status"]["containerStatuses"]
    ]
    return {"phase": "Succeeded" if code == 0 else "Failed", "containerStatuses": containers}


@asynccontextmanager
async def running_colours(cluster: Cluster, code_before: Path) -> AsyncIterator[Colours]:
    """Run both colours and two nodes on one database, the active service in front of them, and the jobs."""
    async with AsyncExitStack() as last:
        stack = await last.enter_async_context(running_stack(nodes=0))
        assert stack.control_plane is not None
        colours = Colours(
            cluster=cluster,
            stack=stack,
            code_before=code_before,
            ports={"blue": local.Ports.free(), "green": stack.ports},
        )
        colours.children["green"] = stack.control_plane
        last.push_async_callback(_end, colours)
        await colours.start("blue")
        server = await asyncio.start_server(colours.relay.accept, "127.0.0.1", 0)
        last.callback(server.close)
        colours.port = server.sockets[0].getsockname()[1]
        for task in (colours.follow(), colours.play_jobs()):
            last.callback(asyncio.create_task(task).cancel)
        for _ in range(2):
            await stack.add_node(**colours.node_of("blue"))
        yield colours


async def _end(colours: Colours) -> None:
    colours.relay.cut()
    for child in colours.children.values():
        if child.is_running:
            await stop(child)
