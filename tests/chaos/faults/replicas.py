"""Control planes that die or stand still, one of two; and everything restarted in turn."""

import asyncio
import os
import signal
from typing import ClassVar

from cli.stack.children import stop
from tests.chaos.faults.fault import Fault
from tests.chaos.world import World
from tests.e2e.stack import kill


class KilledReplica(Fault):
    name = "control_plane_kill"
    says = "kill -9 of one control plane of two"
    hold_seconds = 8.0

    async def inject(self, world: World) -> None:
        await kill(world.replicas[1].running)

    async def lift(self, world: World) -> None:
        await world.launch_replica(world.replicas[1])


class KilledReplicas(Fault):
    """Each time in the middle of its work: orders have left whose signature it has not recorded yet."""

    name = "control_plane_kills"
    says = "kill -9 of one control plane after the other, eight times"
    hold_seconds = 0.0
    KILLS: ClassVar[int] = 8
    PAUSE_SECONDS: ClassVar[float] = 1.0

    async def inject(self, world: World) -> None:
        for number in range(self.KILLS):
            replica = world.replicas[number % len(world.replicas)]
            await kill(replica.running)
            await world.start_replica(replica)
            await asyncio.sleep(self.PAUSE_SECONDS)  # sessions spread over both again

    async def lift(self, world: World) -> None:
        pass


class StoppedReplica(Fault):
    name = "control_plane_stop"
    says = "SIGSTOP of one control plane of two"

    async def inject(self, world: World) -> None:
        os.kill(world.replicas[1].running.pid, signal.SIGSTOP)

    async def lift(self, world: World) -> None:
        os.kill(world.replicas[1].running.pid, signal.SIGCONT)


class BadDay(Fault):
    """One after the other before the last is mended, so that they overlap."""

    name = "bad_day"
    says = "a node and a control plane killed, Postgres restarted, at once"
    hold_seconds = 2.0

    async def inject(self, world: World) -> None:
        await kill(world.nodes[0].running)
        await asyncio.sleep(1)
        await kill(world.replicas[1].running)
        await asyncio.sleep(1)
        await stop(world.postgres)

    async def lift(self, world: World) -> None:
        await world.start_postgres()
        await world.launch_replica(world.replicas[1])
        await world.launch_node(world.nodes[0])


class RollingRestart(Fault):
    """As an operator upgrades: one process after the other, each told to stop and waited for."""

    name = "rolling_restart"
    says = "everything restarted, one after the other"
    hold_seconds = 0.0

    def __init__(self) -> None:
        self._before: set[int] = set()

    async def inject(self, world: World) -> None:
        self._before = {child.pid for child in world.processes.values()}
        for node in world.nodes:
            await stop(node.running)
            await world.start_node(node)
        for replica in world.replicas:
            await stop(replica.running)
            await world.start_replica(replica)
        await stop(world.postgres)
        await world.start_postgres()

    async def lift(self, world: World) -> None:
        pass

    async def proof(self, world: World) -> str:
        now = {child.pid for child in world.processes.values()}
        assert not now & self._before, "a process was not restarted"
        return f"{len(now)} processes are new"
