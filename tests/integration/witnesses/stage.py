"""A log in Postgres with witnesses, put together as the control plane does."""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from control_plane.log.service import LogService
from control_plane.log.store import PostgresLogStore
from control_plane.witnesses.domain import Outcome, Witness, WitnessPolicy, WitnessState
from control_plane.witnesses.http_client import HttpWitnessClient
from control_plane.witnesses.service import WitnessService
from control_plane.witnesses.store import PostgresWitnessStore
from shared.checkpoints import Checkpoint, parse_checkpoint
from shared.clock import SystemClock, SystemRandom
from tests.fixtures.execution_worlds import PostgresWorld
from tests.integration.log.test_log import KEY, ORIGIN, Counted, Keys, integrate_all, record


@dataclass(slots=True)
class Seen:
    """Implements `WitnessObserver`."""

    outcomes: list[Outcome] = field(default_factory=list)
    states: dict[str, WitnessState] = field(default_factory=dict)
    quorum_size: int = 0
    stopped: int = 0

    def witness_is(self, witness: Witness, state: WitnessState) -> None:
        self.states[witness.name] = state

    def witness_answered(self, witness: Witness, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def witnessed(self, tree_size: int) -> None:
        self.quorum_size = tree_size

    def log_stopped(self, stopped: int) -> None:
        self.stopped = stopped


@dataclass(slots=True, kw_only=True)
class Replica:
    """One replica of the control plane, as far as the log goes."""

    world: PostgresWorld
    log: LogService
    witnesses: WitnessService
    seen: Seen

    async def grow(self, count: int) -> None:
        await record(self.world, count)
        await integrate_all(self.log)

    async def signed(self, count: int) -> Checkpoint:
        """Grow the log and sign its head."""
        await self.grow(count)
        note = await self.log.sign()
        assert note is not None
        return parse_checkpoint(note).checkpoint


@asynccontextmanager
async def replica(
    world: PostgresWorld,
    witnesses: Sequence[Witness],
    *,
    quorum: int = 1,
    every: timedelta = timedelta(0),
    timeout: timedelta = timedelta(seconds=5),
) -> AsyncIterator[Replica]:
    store, seen = PostgresLogStore(), Seen()
    client = HttpWitnessClient(timeout=timeout, trusted=ssl.create_default_context())
    service = WitnessService(
        database=world.database,
        store=PostgresWitnessStore(),
        logs=store,
        client=client,
        policy=WitnessPolicy(witnesses=tuple(witnesses), quorum=quorum, every=every, timeout=timeout),
        origin=ORIGIN,
        audit=world.audit,
        observer=seen,
        clock=SystemClock(),
        random=SystemRandom(),
    )
    log = LogService(
        database=world.database,
        store=store,
        origin=ORIGIN,
        keys=Keys(key=KEY),
        observer=Counted(),
        random=SystemRandom(),
        witnesses=service,
    )
    try:
        yield Replica(world=world, log=log, witnesses=service, seen=seen)
    finally:
        await client.close()
