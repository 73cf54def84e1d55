"""What goes wrong in one life, and when: drawn from the seed before it begins."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from tests.simulation.chance import Chance
from tests.simulation.database import CrashPoint, Wire
from tests.simulation.loop import Process
from tests.simulation.network import Weather
from tests.simulation.node import SimulatedNode
from tests.simulation.replica import Replica

if TYPE_CHECKING:
    from tests.simulation.world import World

STOP_LOOK_SECONDS = 0.1
STATEMENTS = ("accept", "claim", "finish", "finish", "renew", "open session", "release_unsent")
"""At whose commits replicas are killed on purpose."""


@dataclass
class Faults:
    """Makes things go wrong, and right again."""

    world: "World"
    chance: Chance

    def plan(self, *, seconds: float, count: int) -> None:
        """Let `count` faults happen within so many seconds; half of them on the heels of another."""
        at = 0.0
        for number in range(count):
            fault = self.chance.one_of(KINDS)
            if number and self.chance.happens(0.5):
                at = min(at + self.chance.between(0, 0.5), seconds)
            else:
                at = self.chance.between(0.1, seconds)
            self.world.loop.at(at, self._happen, fault, self.chance.of(f"fault {number}"))

    def heal(self) -> None:
        """End everything that is wrong; what is down comes up."""
        world = self.world
        world.trace.note("-- everything heals")
        world.network.heal()
        world.database.wire = Wire()
        world.database.crash_points.clear()
        world.custody.away_until = 0.0
        for node in world.nodes:
            node.disk.slow, node.disk.is_full, node.disk.crash_point = 1.0, False, None
            node.clock.offset = timedelta(0)
        for one in world.system:
            one.process.resume()
            if not one.process.is_alive:
                one.boot()

    def _happen(self, fault: "Callable[[Faults, Chance], None]", chance: Chance) -> None:
        if not self.world.heals:
            fault(self, chance)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        def unless_healed() -> None:
            if not self.world.heals:
                call()

        self.world.loop.at(seconds, unless_healed)

    def _node(self, chance: Chance) -> SimulatedNode:
        """Mostly one that runs a guest: others have less to lose."""
        busy = [node for node in self.world.nodes if self.world.watch.runs_a_guest(node.process)]
        return chance.one_of(busy if busy and chance.happens(0.7) else self.world.nodes)

    def _note(self, kind: str, text: str) -> None:
        self.world.trace.fault(kind, text)

    # --- processes

    def kill_node(self, chance: Chance) -> None:
        self._kill(chance, self._node(chance))

    def kill_replica(self, chance: Chance) -> None:
        self._kill(chance, chance.one_of(self.world.replicas))

    def kill_at_a_statement(self, chance: Chance) -> None:
        """Kill the replica that next sends such a statement, at the moment of its commit."""
        world = self.world

        def kill(process: Process) -> None:
            for replica in world.replicas:
                if replica.process is process and not world.heals:
                    self._kill(chance, replica)

        name = chance.one_of(STATEMENTS)
        world.database.crash_points[name] = CrashPoint(kill, after=chance.happens(0.5))

    def kill_at_a_write(self, chance: Chance) -> None:
        """Kill a node while it writes its next receipt."""
        node = self._node(chance)

        def kill() -> None:
            if not self.world.heals:
                self._kill(chance, node)

        node.disk.crash_point = kill

    def _kill(self, chance: Chance, one: SimulatedNode | Replica) -> None:
        if not one.process.is_alive:
            return
        down = chance.between(0.01, 6)
        self._note("kill", f"{one.name} for {down:.2f} s")
        self.world.kill(one)
        killed = one.process

        def start() -> None:
            if one.process is killed:
                self.world.trace.note(f"{one.name} starts again")
                one.boot()

        self._later(down, start)

    def pause_node(self, chance: Chance) -> None:
        self._pause(chance, self._node(chance))

    def pause_replica(self, chance: Chance) -> None:
        self._pause(chance, chance.one_of(self.world.replicas))

    def _pause(self, chance: Chance, one: SimulatedNode | Replica) -> None:
        if not one.process.is_running:
            return
        still = chance.between(0.05, 8)
        self._note("pause", f"{one.name} for {still:.2f} s")
        one.process.pause()
        self._later(still, one.process.resume)

    def restart_node(self, chance: Chance) -> None:
        self._restart(self._node(chance))

    def restart_replica(self, chance: Chance) -> None:
        self._restart(chance.one_of(self.world.replicas))

    def _restart(self, one: SimulatedNode | Replica) -> None:
        if not one.process.is_running or one.has_stopped:
            return
        self._note("restart", one.name)
        one.stop()
        stopping = one.process

        def look() -> None:
            if one.process is not stopping or not one.process.is_alive:
                return
            if one.has_stopped:
                self.world.kill(one)
                one.boot()
            else:
                self.world.loop.at(STOP_LOOK_SECONDS, look)

        self.world.loop.at(STOP_LOOK_SECONDS, look)

    # --- network

    def cut_stream(self, chance: Chance) -> None:
        connections = self.world.network.connections
        if connections:
            connection = chance.one_of(connections)
            self._note("cut", connection.link.name)
            connection.cut()

    def black_link(self, chance: Chance) -> None:
        one, other = self._node(chance), chance.one_of(self.world.replicas)
        seconds = chance.between(0.2, 20)
        self._note("black link", f"{one.name}-{other.name} for {seconds:.2f} s")
        self.world.network.link(one.name, other.name).go_black(seconds)

    def black_node(self, chance: Chance) -> None:
        node, seconds = self._node(chance), chance.between(0.2, 12)
        self._note("black node", f"{node.name} for {seconds:.2f} s")
        for replica in self.world.replicas:
            self.world.network.link(node.name, replica.name).go_black(seconds)

    def black_replica(self, chance: Chance) -> None:
        replica, seconds = chance.one_of(self.world.replicas), chance.between(0.2, 8)
        self._note("black replica", f"{replica.name} for {seconds:.2f} s")
        names = [node.name for node in self.world.nodes] + [client.name for client in self.world.clients]
        for name in names:
            self.world.network.link(name, replica.name).go_black(seconds)

    def bad_weather(self, chance: Chance) -> None:
        seconds = chance.between(0.5, 6)
        weather = Weather(
            lost=chance.one_of((0, 0.05, 0.3)),
            twice=chance.one_of((0, 0.2, 0.5)),
            overtaken=chance.one_of((0, 0.1, 0.4)),
            slow=chance.one_of((0, 0.05, 0.2)),
        )
        self._note("bad weather", f"for {seconds:.2f} s: {weather}")
        self.world.network.weather = weather

        def clear() -> None:
            if self.world.network.weather is weather:
                self.world.network.weather = Weather()

        self._later(seconds, clear)

    # --- database, keys, disks, clocks

    def database_away(self, chance: Chance) -> None:
        seconds = chance.between(0.1, 5)
        self._note("database away", f"for {seconds:.2f} s")
        self.world.database.go_away(seconds)

    def bad_wire(self, chance: Chance) -> None:
        seconds = chance.between(0.3, 4)
        wire = Wire(
            lost_before=chance.one_of((0, 0.1, 0.4)),
            lost_after=chance.one_of((0, 0.1, 0.4)),
            lost_notes=chance.one_of((0, 0.5, 1.0)),
            slow=chance.one_of((1, 1, 30, 300)),
        )
        self._note("bad wire", f"for {seconds:.2f} s: {wire}")
        self.world.database.wire = wire

        def mend() -> None:
            if self.world.database.wire is wire:
                self.world.database.wire = Wire()

        self._later(seconds, mend)

    def custody_away(self, chance: Chance) -> None:
        seconds = chance.between(0.2, 4)
        self._note("key custody away", f"for {seconds:.2f} s")
        self.world.custody.away_until = self.world.loop.time() + seconds

    def slow_disk(self, chance: Chance) -> None:
        node, seconds = self._node(chance), chance.between(0.5, 5)
        self._note("slow disk", f"{node.name} for {seconds:.2f} s")
        node.disk.slow = chance.one_of((20, 200, 2000))

        def mend() -> None:
            node.disk.slow = 1.0

        self._later(seconds, mend)

    def full_disk(self, chance: Chance) -> None:
        node, seconds = self._node(chance), chance.between(0.5, 6)
        self._note("full disk", f"{node.name} for {seconds:.2f} s")
        node.disk.is_full = True

        def mend() -> None:
            node.disk.is_full = False

        self._later(seconds, mend)

    def wrong_clock(self, chance: Chance) -> None:
        node, seconds = self._node(chance), chance.between(0.5, 6)
        offset = chance.one_of((-300, -25, -3, 3, 25, 300))
        self._note("wrong clock", f"{node.name} by {offset} s for {seconds:.2f} s")
        node.clock.offset = timedelta(seconds=offset)

        def mend() -> None:
            node.clock.offset = timedelta(0)

        self._later(seconds, mend)


KINDS = (
    Faults.kill_node,
    Faults.kill_node,
    Faults.kill_replica,
    Faults.kill_at_a_statement,
    Faults.kill_at_a_statement,
    Faults.kill_at_a_write,
    Faults.kill_at_a_write,
    Faults.pause_node,
    Faults.pause_replica,
    Faults.restart_node,
    Faults.restart_replica,
    Faults.cut_stream,
    Faults.black_link,
    Faults.black_node,
    Faults.black_replica,
    Faults.bad_weather,
    Faults.bad_weather,
    Faults.database_away,
    Faults.bad_wire,
    Faults.bad_wire,
    Faults.custody_away,
    Faults.slow_disk,
    Faults.full_disk,
    Faults.wrong_clock,
)
