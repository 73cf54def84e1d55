"""Nodes that die, stand still, are slow, or whose stream goes nowhere."""

import asyncio
import os
import signal
from typing import ClassVar

from tests.chaos.faults.fault import Fault
from tests.chaos.world import Needs, World
from tests.e2e.stack import kill


class KilledNode(Fault):
    name = "node_kill"
    says = "kill -9 of one node of four"
    takes_nodes_off = True

    async def inject(self, world: World) -> None:
        await kill(world.nodes[0].running)

    async def lift(self, world: World) -> None:
        await world.launch_node(world.nodes[0])


class StoppedNode(Fault):
    name = "node_stop"
    says = "SIGSTOP of one node of four"
    takes_nodes_off = True

    async def inject(self, world: World) -> None:
        os.kill(world.nodes[0].running.pid, signal.SIGSTOP)

    async def lift(self, world: World) -> None:
        os.kill(world.nodes[0].running.pid, signal.SIGCONT)


class BlackHole(Fault):
    name = "stream_black_hole"
    says = "a node's streams swallow everything"
    needs = Needs(stream_proxy=True)
    takes_nodes_off = True

    async def inject(self, world: World) -> None:
        for proxy in world.stream_proxies:
            proxy.swallow()

    async def lift(self, world: World) -> None:
        for proxy in world.stream_proxies:
            proxy.lift()


class SlowNode(Fault):
    """Not off: it goes on taking orders, at a tenth of its speed."""

    name = "node_slow"
    says = "one node of four gets a tenth of its time"
    PERIOD_SECONDS: ClassVar[float] = 0.1
    AWAKE_SECONDS: ClassVar[float] = 0.01

    def __init__(self) -> None:
        self._slowing: asyncio.Task[None] | None = None

    async def inject(self, world: World) -> None:
        self._slowing = asyncio.create_task(self._slow(world.nodes[0].running.pid))

    async def _slow(self, pid: int) -> None:
        try:
            while True:
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(self.PERIOD_SECONDS - self.AWAKE_SECONDS)
                os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(self.AWAKE_SECONDS)
        finally:
            os.kill(pid, signal.SIGCONT)

    async def lift(self, world: World) -> None:
        assert self._slowing is not None
        self._slowing.cancel()
        await asyncio.wait([self._slowing])
