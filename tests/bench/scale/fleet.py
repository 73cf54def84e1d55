"""Many simulated nodes in one process, told over a pipe how many of them shall be connected.

``python -m tests.bench.scale.fleet`` reads one JSON object a line from its input and answers each with one line:
``{"connect": N}`` when N nodes are welcome, ``{"counts": true}`` with what they did, end of input: it ends.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

from agentfactory.v1 import nodes_pb2, nodes_pb2_grpc
from google.protobuf.duration_pb2 import Duration

from cli.client import connect as connect_client
from cli.settings import CliSettings
from cli.stack.local import ENROLL_TOKEN_LIFE
from shared.errors import AgentFactoryError
from shared.paths import InstallationPaths
from shared.rpc.channel import connect
from shared.rpc.tls import server_only_channel_credentials
from shared.trust import TrustRoots, read_trust
from tests.bench.scale.node import CALL_SECONDS, Counts, Identity, SimulatedNode, enroll

AT_ONCE = 8
"""Enrollments, and first connections, under way together: a crowd larger than this only waits in line."""
WELCOME_SECONDS = 120.0
RECONNECT_SECONDS = 0.5


class SimulatedFleet:
    """Nodes of one installation; the first N of them are connected."""

    def __init__(self, trust: TrustRoots, targets: Sequence[str], *, slots: int, run_seconds: float) -> None:
        self.counts = Counts()
        self.nodes: list[SimulatedNode] = []
        self.broken = 0
        """Sessions that ended otherwise than planned."""
        self._trust = trust
        self._targets = cycle(targets)
        self._slots = slots
        self._run_seconds = run_seconds
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, identity: Identity) -> None:
        """Take an enrolled node in; it is not connected yet."""
        self.nodes.append(
            SimulatedNode(
                identity, self._trust, counts=self.counts, slots=self._slots, run_seconds=self._run_seconds
            )
        )

    async def connect(self, count: int) -> None:
        """Let exactly `count` nodes hold a session; returns when each of them is welcome.

        Raises:
            TimeoutError: Not all of them were, in two minutes.
        """
        if count > len(self.nodes):
            raise ValueError(f"{count} of {len(self.nodes)} nodes cannot be connected")
        for task in self._tasks[count:]:
            task.cancel()
        await asyncio.gather(*self._tasks[count:], return_exceptions=True)
        del self._tasks[count:]
        gate = asyncio.Semaphore(AT_ONCE)

        async def start(node: SimulatedNode) -> None:
            async with gate:
                welcome = asyncio.Event()
                self._tasks.append(asyncio.create_task(self._keep(node, welcome)))
                await welcome.wait()

        async with asyncio.timeout(WELCOME_SECONDS):
            await asyncio.gather(*(start(node) for node in self.nodes[len(self._tasks) : count]))

    async def close(self) -> None:
        """End every session."""
        await self.connect(0)

    async def _keep(self, node: SimulatedNode, welcome: asyncio.Event) -> None:
        while True:
            try:
                await node.run(next(self._targets), welcome)
            except AgentFactoryError as error:
                self.broken += 1
                sys.stderr.write(f"session of {node.identity.node_id} broke: {error}\n")
                await asyncio.sleep(RECONNECT_SECONDS)


async def enroll_many(
    settings: CliSettings, enroll_target: str, trust: TrustRoots, count: int
) -> list[Identity]:
    """Return `count` new nodes of the installation, each with a token of its own, as operators make them."""
    gate = asyncio.Semaphore(AT_ONCE)
    life = Duration(seconds=round(ENROLL_TOKEN_LIFE.total_seconds()))
    credentials = server_only_channel_credentials(trust.ca_certificate_pem)
    async with connect_client(settings) as client, connect(enroll_target, credentials) as channel:
        stub = nodes_pb2_grpc.NodeServiceStub(channel)

        async def one() -> Identity:
            async with gate:
                made = await client.fleet.CreateEnrollmentToken(
                    nodes_pb2.CreateEnrollmentTokenRequest(ttl=life),
                    timeout=CALL_SECONDS,
                    wait_for_ready=True,
                )
                return await enroll(stub, made.token)

        return list(await asyncio.gather(*(one() for _ in range(count))))


async def serve(given: argparse.Namespace) -> None:
    """Enroll, then do what the lines of the input say."""
    trust = read_trust(InstallationPaths(data_dir=given.data_dir).node.trust)
    settings = CliSettings(data_dir=given.data_dir, target=given.targets[0])
    fleet = SimulatedFleet(trust, given.targets, slots=given.slots, run_seconds=given.run_seconds)
    started = time.monotonic()
    for identity in await enroll_many(settings, given.enroll_target, trust, given.nodes):
        fleet.add(identity)
    _say({"enrolled": len(fleet.nodes), "seconds": time.monotonic() - started})
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        if "connect" in asked:
            await fleet.connect(asked["connect"])
        _say({**asdict(fleet.counts), "broken": fleet.broken, "unacknowledged": _unacknowledged(fleet)})
    await fleet.close()


def _unacknowledged(fleet: SimulatedFleet) -> int:
    return sum(node.unacknowledged for node in fleet.nodes)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale.fleet", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--enroll-target", required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--run-seconds", type=float, default=0.0)
    parser.add_argument("targets", nargs="+")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
