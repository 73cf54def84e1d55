"""The shape of every system that is measured: prepared once, started, asked, stopped. Also who they are."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import ClassVar

from cli.stack.children import Child, ChildSpec, spawn, stop
from tests.bench.peers.load import Submit

ROOT = Path(__file__).resolve().parents[3]
SLOTS = 2
MODULES = {
    "agent-factory": "agent_factory:AgentFactory",
    "agent-factory-bare": "agent_factory:AgentFactoryBare",
    "echo": "grpc_echo:GrpcEcho",
    "celery": "celery_redis:CeleryAlways",
    "celery-everysec": "celery_redis:CeleryEverySecond",
    "procrastinate": "procrastinate_postgres:Procrastinate",
    "pgqueuer": "pgqueuer_postgres:PgQueuerPeer",
    "nats": "nats_jetstream:NatsJetStream",
    "temporal": "temporal_dev:Temporal",
}
"""What may be named on the command line, and where it is."""

NEEDS = {
    "celery": ("celery", "redis"),
    "celery-everysec": ("celery", "redis"),
    "procrastinate": ("procrastinate", "psycopg"),
    "pgqueuer": ("pgqueuer",),
    "nats": ("nats",),
    "temporal": ("temporalio",),
}
"""Packages beyond the checks' environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A started system."""

    submit: Submit
    roots: Mapping[str, int] = field(default_factory=dict)
    """Name and process id of the root of each process tree that makes it up; the client is none of them."""
    streamed: Submit | None = None
    """The same over a stream for heavy callers, where there is one."""


class Peer(ABC):
    """One system under test. An instance is for one visit and keeps its files in one folder."""

    durable: ClassVar[bool] = True
    """Whether a job is on disk before it runs and after; the references are not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[Child] = []
        """Those that must run until they are stopped."""

    @abstractmethod
    async def prepare(self, kept: AsyncExitStack) -> None:
        """Do what an installation does once: files, schemas, keys. Not part of the cold start."""

    @abstractmethod
    async def start(self, running: AsyncExitStack) -> System:
        """Start server and worker and connect the client; `running` stops them."""

    async def child(
        self, running: AsyncExitStack, name: str, arguments: Sequence[str], **variables: str
    ) -> Child:
        """Start a process that is stopped with `running`; its log lies in the peer's folder."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AF_")}
        child = await spawn(
            ChildSpec(
                name=name,
                arguments=arguments,
                environment=environment | variables,
                log=self.folder / "logs" / f"{name}.log",
            )
        )
        self.children.append(child)
        running.push_async_callback(self._stop_child, child)
        return child

    async def _stop_child(self, child: Child) -> None:
        self.children.remove(child)
        await stop(child)

    async def worker(self, running: AsyncExitStack, module: str, *arguments: str) -> Child:
        """Start a module of this package as the worker process."""
        return await self.child(running, "worker", [sys.executable, "-m", module, *arguments])


def make(name: str, folder: Path) -> Peer:
    """Return the peer of a name. Its libraries are imported only here: no client carries those of another."""
    module, _, attribute = MODULES[name].partition(":")
    peer: Peer = getattr(import_module(f"tests.bench.peers.{module}"), attribute)(folder)
    return peer
