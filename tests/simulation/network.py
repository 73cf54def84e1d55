"""The network of the simulated system: sessions between nodes and replicas, and calls of clients.

Messages are delayed, and in bad weather lost, sent twice or overtaken by later ones. A link may be black: it
swallows everything until it heals, or until keepalive ends the streams on it. Both ends of a stream learn of its
end by a message too, so each may believe in it longer than the other.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from agentfactory.v1 import nodes_pb2

from shared.errors import AgentFactoryError, DeadlineExceededError, UnavailableError
from shared.ids import NodeId
from tests.simulation.chance import Chance
from tests.simulation.loop import Process, ProcessState, VirtualLoop
from tests.simulation.watch import Trace

LATENCY_SECONDS = 0.0005
KEEPALIVE_SECONDS = 15.0
"""After which gRPC notices a link that swallows everything."""
CONNECT_SECONDS = 10.0
CONNECT_RETRY_SECONDS = 0.25


@dataclass
class Weather:
    """What becomes of messages now, each with a probability."""

    lost: float = 0.0
    twice: float = 0.0
    overtaken: float = 0.0
    slow: float = 0.0


class Server(Protocol):
    """What the network needs of a replica."""

    name: str
    process: Process

    def serve(
        self, requests: AsyncIterator[nodes_pb2.SessionRequest], *, node_id: NodeId
    ) -> AsyncGenerator[nodes_pb2.SessionResponse]: ...


class _End:
    """A direction of a stream is over: as planned, or with an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error


class _Inbox:
    """One end of one direction: what has arrived and was not read."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, item: Any) -> None:
        self._queue.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            item = await self._queue.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item


class Link:
    """The way between two processes, both directions."""

    def __init__(self, network: "Network", name: str) -> None:
        self.name = name
        self._network = network
        self._chance = network.chance.of(name)
        self._black_until = 0.0

    @property
    def is_black(self) -> bool:
        return self._network.loop.time() < self._black_until

    def go_black(self, seconds: float) -> None:
        self._black_until = max(self._black_until, self._network.loop.time() + seconds)

    def arrival(self, earliest: float, *, kind: str) -> tuple[list[float], float]:
        """When a message arrives: never, once or twice; and before when none that follows does."""
        loop, weather, chance, trace = (
            self._network.loop,
            self._network.weather,
            self._chance,
            self._network.trace,
        )
        now = loop.time()
        if chance.happens(weather.lost):
            trace.fault("message lost", f"{kind} on {self.name}")
            return [], earliest
        delay = chance.latency(LATENCY_SECONDS)
        if chance.happens(weather.slow):
            delay += chance.between(0.1, 2.0)
            trace.fault("message slow", f"{kind} on {self.name} by {delay:.2f} s")
        at = max(now, self._black_until) + delay
        if chance.happens(weather.overtaken):
            trace.fault("message overtaken", f"{kind} on {self.name}")
            late = at + chance.between(0.001, 0.5)
            return [late], earliest
        at = max(at, earliest)
        if chance.happens(weather.twice):
            trace.fault("message twice", f"{kind} on {self.name}")
            return [at, at + chance.between(0, 0.3)], at
        return [at], at


class _Direction:
    """One direction of one stream."""

    def __init__(self, connection: "Connection", inbox: _Inbox) -> None:
        self._connection = connection
        self._inbox = inbox
        self._earliest = 0.0

    def send(self, message: Any) -> None:
        link, loop = self._connection.link, self._connection.network.loop
        kind = "end" if isinstance(message, _End) else message.WhichOneof("message")
        if isinstance(message, _End):
            times = [max(self._earliest, loop.time()) + LATENCY_SECONDS]
            if link.is_black:
                times = [link._black_until + LATENCY_SECONDS]
        else:
            times, self._earliest = link.arrival(self._earliest, kind=kind)
        for at in times:
            loop.at(max(at - loop.time(), 0), self._arrive, message)

    def _arrive(self, message: Any) -> None:
        if not self._connection.is_cut:
            self._inbox.put(message)


class Connection:
    """One session stream. The node's end implements `ClosableStream`."""

    def __init__(
        self, network: "Network", link: Link, node: Process, server: Server, node_id: NodeId
    ) -> None:
        self.network = network
        self.link = link
        self.is_cut = False
        self._node = node
        self._serving = server.process
        self._closed = False
        self._replies, self._requests = _Inbox(), _Inbox()
        self._up, self._down = _Direction(self, self._requests), _Direction(self, self._replies)
        self._handler = self._serving.spawn(self._handle(server, node_id))
        network.connections.append(self)
        self._keepalive: float | None = None
        network.loop.at(1.0, self._keep_alive)

    # --- the node's end

    async def write(self, message: nodes_pb2.SessionRequest) -> None:
        if self._closed or self.is_cut:
            raise UnavailableError("the session stream is closed")
        self._up.send(message)

    def __aiter__(self) -> AsyncIterator[nodes_pb2.SessionResponse]:
        return aiter(self._replies)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._tell_server()

    # --- the replica's end

    async def _handle(self, server: Server, node_id: NodeId) -> None:
        error: Exception | None = None
        try:
            async with aclosing(server.serve(aiter(self._requests), node_id=node_id)) as answers:
                async for message in answers:
                    self._down.send(message)
        except AgentFactoryError as problem:
            error = problem
        self._down.send(_End(error))

    def _tell_server(self) -> None:
        """The node's end is gone: its call is cancelled over there."""
        loop = self.network.loop
        delay = max(self.link._black_until - loop.time(), 0) + LATENCY_SECONDS
        loop.at(delay, self._serving.soon, self._handler.cancel)
        self._forget()

    # --- how it ends otherwise

    def cut(self) -> None:
        """Reset it: both ends are told at once."""
        if self.is_cut:
            return
        self.is_cut = True
        self._replies.put(_End(UnavailableError("the connection was reset")))
        self._serving.soon(self._handler.cancel)
        self._forget()

    def lost_peer(self, process: Process) -> None:
        """A process died: the kernel resets what it had open."""
        if process is self._node and not self._closed:
            self._closed = True
            self._tell_server()
        elif process is self._serving:
            self._down.send(_End(UnavailableError("the connection was reset by the peer")))
            self._forget()

    def _keep_alive(self) -> None:
        if self.is_cut or self._closed or self._handler.done():
            return
        loop = self.network.loop
        if not self.link.is_black:
            self._keepalive = None
        elif self._keepalive is None:
            self._keepalive = loop.time()
        elif loop.time() - self._keepalive >= KEEPALIVE_SECONDS:
            self.network.trace.note(f"keepalive ends the stream on {self.link.name}")
            self.cut()
            return
        loop.at(1.0, self._keep_alive)

    def _forget(self) -> None:
        if self in self.network.connections:
            self.network.connections.remove(self)


class Network:
    """All links."""

    def __init__(self, loop: VirtualLoop, chance: Chance, trace: Trace) -> None:
        self.loop = loop
        self.chance = chance
        self.trace = trace
        self.weather = Weather()
        self.connections: list[Connection] = []
        self._links: dict[str, Link] = {}

    def link(self, one: str, other: str) -> Link:
        name = f"{one}-{other}"
        if name not in self._links:
            self._links[name] = Link(self, name)
        return self._links[name]

    def heal(self) -> None:
        """Fair weather from now on; what was swallowed arrives."""
        self.weather = Weather()
        for link in self._links.values():
            link._black_until = min(link._black_until, self.loop.time())

    def process_died(self, process: Process) -> None:
        for connection in list(self.connections):
            connection.lost_peer(process)

    async def connect(self, node: Process, server: Server, node_id: NodeId) -> Connection:
        """Open a session stream.

        Raises:
            UnavailableError: Nobody listens, or nobody answers in time.
        """
        link = self.link(node.name, server.name)
        deadline = self.loop.time() + CONNECT_SECONDS
        while link.is_black or server.process.state is ProcessState.PAUSED:
            if self.loop.time() >= deadline:
                raise UnavailableError(f"{server.name} did not answer")
            await asyncio.sleep(CONNECT_RETRY_SECONDS)
        await asyncio.sleep(self.chance.of(link.name).latency(LATENCY_SECONDS))
        if not server.process.is_alive:
            raise UnavailableError(f"{server.name} refuses connections")
        return Connection(self, link, node, server, node_id)

    async def request(
        self,
        client: str,
        server: Server,
        handler: Callable[[], Coroutine[Any, Any, Any]],
        *,
        deadline: float,
    ) -> Any:
        """Call a replica as a client does.

        Raises:
            UnavailableError: The replica is away, or died under it; whatever it did has been done.
            DeadlineExceededError: No answer came in time.
        """
        link, chance = self.link(client, server.name), self.chance.of(f"{client}-{server.name} call")
        answer = self.loop.create_future()
        call = _Call(self, link, server, handler, answer)
        lost = chance.happens(self.weather.lost)
        if not lost:
            self.loop.at(
                max(link._black_until - self.loop.time(), 0) + chance.latency(LATENCY_SECONDS), call.arrive
            )
        try:
            async with asyncio.timeout(deadline):
                return await answer
        except TimeoutError as error:
            raise DeadlineExceededError(f"{server.name} did not answer within {deadline:g} s") from error
        finally:
            call.gone()


class _Call:
    """One call on its way to a replica and back."""

    def __init__(
        self,
        network: Network,
        link: Link,
        server: Server,
        handler: Callable[[], Coroutine[Any, Any, Any]],
        answer: "asyncio.Future[Any]",
    ) -> None:
        self._network = network
        self._link = link
        self._server = server
        self._handler = handler
        self._answer = answer
        self._process = server.process
        self._task: asyncio.Task[Any] | None = None

    def arrive(self) -> None:
        if self._answer.done():
            return
        if not self._server.process.is_alive:
            self._reply(None, UnavailableError(f"{self._server.name} refuses connections"))
            return
        self._process = self._server.process
        self._task = self._process.spawn(self._run())
        self._network.loop.at(0.5, self._look)

    def _look(self) -> None:
        """Dead replicas reset their connections."""
        if self._answer.done():
            return
        if not self._process.is_alive:
            self._reply(None, UnavailableError(f"{self._server.name} died"))
            return
        self._network.loop.at(0.5, self._look)

    async def _run(self) -> None:
        result, error = None, None
        try:
            result = await self._handler()
        except AgentFactoryError as problem:
            error = problem
        self._reply(result, error)

    def _reply(self, result: Any, error: Exception | None) -> None:
        network = self._network
        chance = network.chance.of(f"{self._link.name} reply")
        if chance.happens(network.weather.lost):
            network.trace.fault("answer lost", f"to a client on {self._link.name}")
            return
        delay = max(self._link._black_until - network.loop.time(), 0) + chance.latency(LATENCY_SECONDS)
        network.loop.at(delay, self._settle, result, error)

    def _settle(self, result: Any, error: Exception | None) -> None:
        if self._answer.done():
            return
        if error is None:
            self._answer.set_result(result)
        else:
            self._answer.set_exception(error)

    def gone(self) -> None:
        """The client waits no more: its call is cancelled over there."""
        if self._task is not None and not self._task.done():
            self._network.loop.at(LATENCY_SECONDS, self._process.soon, self._task.cancel)
