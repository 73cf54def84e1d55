"""A scripted control plane and real nodes: real gRPC, mTLS, keys, disk, engine and worker processes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_plane.main import build_node
from data_plane.node import Node
from data_plane.settings import NodeSettings
from tests.fakes.control_plane import ScriptedControlPlane, Template, publish

ACTOR = Path(__file__).parents[2] / "guests" / "actor.wasm"


@pytest.fixture
async def control_plane() -> AsyncIterator[ScriptedControlPlane]:
    async with ScriptedControlPlane() as control_plane:
        yield control_plane


@pytest.fixture
async def actor() -> Template:
    """A template whose guest does what its input says."""
    return await publish(ACTOR.read_bytes())


@dataclass(kw_only=True)
class RunningNode:
    node: Node
    settings: NodeSettings
    task: "asyncio.Task[None]"

    async def stop(self) -> None:
        self.node.stop()
        await self.task


StartNode = Callable[..., Awaitable[RunningNode]]


@pytest.fixture
async def start_node(control_plane: ScriptedControlPlane, tmp_path: Path) -> AsyncIterator[StartNode]:
    """Start a node in a folder; started again in the same folder it is the same node."""
    async with AsyncExitStack() as nodes:

        async def start(name: str = "node", **settings: Any) -> RunningNode:
            folder = tmp_path / name
            if not (folder / "node.json").exists():
                control_plane.enroll_folder(folder, name)
            return await nodes.enter_async_context(_running(folder, control_plane.port, settings))

        yield start


@asynccontextmanager
async def _running(folder: Path, port: int, changes: dict[str, Any]) -> AsyncIterator[RunningNode]:
    values = {"slots": 2, "drain_timeout_s": 5, "control_planes": (f"localhost:{port}",), **changes}
    settings = NodeSettings(data_dir=folder, **values)
    async with AsyncExitStack() as stack:
        node, _ = await build_node(settings, stack)
        task = asyncio.create_task(node.run())
        try:
            yield RunningNode(node=node, settings=settings, task=task)
        finally:
            if not task.done():
                node.stop()
                node.stop()
                async with asyncio.timeout(20):
                    await asyncio.wait({task})
