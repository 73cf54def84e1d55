"""Parts that fail inside a process: keys that do not sign, a clock, a disk, a cache, the order of messages."""

import json
import os
from pathlib import Path
from typing import ClassVar

from tests.chaos.faults.fault import Fault
from tests.chaos.processes.switches import turn_off, turn_on
from tests.chaos.world import ChaosNode, Needs, World
from tests.e2e.stack import kill

KEYS_AWAY = "keys-away"
CLOCK_AHEAD_SECONDS = "clock-ahead-seconds"
SHUFFLED = "shuffled"
OWN_NODE = Needs(node="tests.chaos.processes.node")


def warnings(node: ChaosNode, words: str) -> int:
    """Count the log lines of a node that say something of the kind."""
    return sum(words in line for line in node.log.read_text(errors="replace").splitlines())


class KeysAway(Fault):
    name = "keys_away"
    says = "key custody does not answer for 30 s"
    needs = Needs(control_plane="tests.chaos.processes.control_plane")
    hold_seconds = 30.0

    async def inject(self, world: World) -> None:
        for replica in world.replicas:
            turn_on(world.switch(replica.log.stem, KEYS_AWAY))

    async def lift(self, world: World) -> None:
        for replica in world.replicas:
            turn_off(world.switch(replica.log.stem, KEYS_AWAY))


class ClockJumps(Fault):
    """While the node runs: its session was let in when its clock was right."""

    name = "clock_jumps"
    says = "the clock of a running node jumps 5 minutes ahead"
    needs = OWN_NODE
    takes_nodes_off = True
    AHEAD_SECONDS: ClassVar[float] = 300.0

    async def inject(self, world: World) -> None:
        turn_on(world.switch(world.nodes[0].log.stem, CLOCK_AHEAD_SECONDS), self.AHEAD_SECONDS)

    async def lift(self, world: World) -> None:
        turn_off(world.switch(world.nodes[0].log.stem, CLOCK_AHEAD_SECONDS))

    async def proof(self, world: World) -> str:
        orders = warnings(world.nodes[0], '"rejection": "time"')
        return f"{orders} orders, then {await refused_sessions(world)} sessions refused"


class ClockOff(Fault):
    """The node starts anew, with the wrong clock."""

    name = "clock_off"
    says = "the clock of one node of four is 5 minutes off"
    needs = OWN_NODE
    takes_nodes_off = True
    AHEAD_SECONDS: ClassVar[float] = 300.0

    async def inject(self, world: World) -> None:
        node = world.nodes[0]
        turn_on(world.switch(node.log.stem, CLOCK_AHEAD_SECONDS), self.AHEAD_SECONDS)
        await kill(node.running)
        await world.launch_node(node)

    async def lift(self, world: World) -> None:
        turn_off(world.switch(world.nodes[0].log.stem, CLOCK_AHEAD_SECONDS))

    async def proof(self, world: World) -> str:
        return f"{await refused_sessions(world)} sessions refused"


async def refused_sessions(world: World) -> int:
    """Return how often the first node was refused for its clock; on record, and with an alert."""
    async with world.sql() as sql:
        refused = await sql.fetchval(
            "SELECT count(*) FROM audit_entries WHERE action = 'node.session_refused'"
            " AND subject = $1 AND result = 'CLOCK_SKEW'",
            world.nodes[0].node_id,
        )
    assert refused, "no refusal for its clock is in the audit"
    said = sum("clock of a node is off" in replica.log.read_text() for replica in world.replicas)
    assert said, "no control plane raised the alert"
    return int(refused)


class FullDisk(Fault):
    name = "disk_full"
    says = "the disk of one node of four is full"
    needs = Needs(node_disk_mib=160)
    takes_nodes_off = True
    FILLER: ClassVar[str] = "filler"

    async def inject(self, world: World) -> None:
        """Fill what is left, to the last byte."""
        with (world.nodes[0].paths.data_dir / self.FILLER).open("wb", buffering=0) as filler:
            for size in (1 << 20, 1 << 10, 1):
                while True:
                    try:
                        filler.write(b"\0" * size)
                    except OSError:
                        break

    async def lift(self, world: World) -> None:
        (world.nodes[0].paths.data_dir / self.FILLER).unlink()

    async def proof(self, world: World) -> str:
        assert world.nodes[0].running.is_running, "the node did not stay up"
        return "the node stayed up"


class CorruptArtifact(Fault):
    """Damaged while it runs, and read at the next start."""

    name = "artifact_corrupt"
    says = "a node's cached artifacts are damaged, then it is killed and started"
    hold_seconds = 8.0

    def __init__(self) -> None:
        self._damaged = 0

    async def inject(self, world: World) -> None:
        node = world.nodes[0]
        for path in node.paths.artifacts.glob("*.artifact"):
            self._damaged += damage(path)
        await kill(node.running)
        await world.launch_node(node)

    async def lift(self, world: World) -> None:
        pass

    async def proof(self, world: World) -> str:
        assert self._damaged, "there was no artifact to damage"
        dropped = warnings(world.nodes[0], "a damaged artifact was dropped")
        assert dropped, "the node noticed no damage"
        return f"{dropped} dropped, compiled anew"


def damage(path: Path) -> int:
    """Flip a byte in every 4 KiB of the second half; returns how many."""
    size = path.stat().st_size
    places = range(size // 2, size, 4096)
    with path.open("r+b", buffering=0) as file:
        for place in places:
            file.seek(place)
            old = file.read(1)
            file.seek(place)
            file.write(bytes([old[0] ^ 0xFF]))
        os.fsync(file.fileno())
    return len(places)


class ShuffledMessages(Fault):
    name = "stream_shuffled"
    says = "messages of every node's stream come twice and out of order"
    needs = OWN_NODE

    async def inject(self, world: World) -> None:
        for node in world.nodes:
            turn_on(world.switch(node.log.stem, SHUFFLED))

    async def lift(self, world: World) -> None:
        for node in world.nodes:
            turn_off(world.switch(node.log.stem, SHUFFLED))

    async def proof(self, world: World) -> str:
        ended = 0
        for node in world.nodes:
            for line in node.log.read_text(errors="replace").splitlines():
                ended += line.startswith("{") and json.loads(line).get("event") == "session lost"
        return f"{ended} sessions were lost over it"
