"""The parts of dispatch on fakes: no socket, no database, no time that passes by itself."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from control_plane.dispatch.background import Background
from control_plane.dispatch.batches import Batches
from control_plane.dispatch.dispatcher import Dispatcher
from control_plane.dispatch.fleet import Fleet
from control_plane.dispatch.ports import SilentObserver
from control_plane.dispatch.session import LiveSession
from control_plane.executions.domain import (
    Claimable,
    IdempotencyKey,
    NewExecution,
    Placement,
)
from shared.ids import AuditEntryId
from tests.builders.executions import allowed
from tests.fakes.clock import START, FakeClock, FakeRandom
from tests.fixtures import dispatch as build
from tests.fixtures.keys import rsa_key, signer
from tests.fixtures.scripted_leases import ScriptedLeases


def newcomer(**changes: Any) -> NewExecution:
    """A request that was just allowed."""
    run = build.run_spec(**changes)
    return NewExecution(
        run=run,
        agent_revision=1,
        idempotency=IdempotencyKey(
            method="Execute", request_id="r", hmac_key=b"k" * 32, fingerprint=b"f" * 32
        ),
        decision=allowed(run, at=START),
        audit_entry_id=AuditEntryId("aud_1"),
        created_at=START,
    )


@dataclass
class Parts:
    """A dispatcher and everything around it."""

    dispatcher: Dispatcher
    batches: Batches
    background: Background
    leases: ScriptedLeases
    fleet: Fleet
    clock: FakeClock
    changes: dict[str, Any] = field(default_factory=dict)

    def join(self, **changes: Any) -> LiveSession:
        """A session that offers its slots."""
        session = build.session(last_message_at=self.clock.monotonic(), **changes)
        self.fleet.add(session)
        return session

    async def find_queue_empty(self) -> None:
        await self.dispatcher.claim_once()
        assert self.dispatcher.queue_is_empty

    def take(self, *works: NewExecution) -> list[Placement]:
        """Place and commit, as if the database had accepted everything."""
        placements = [one for one in self.dispatcher.place(works) if one is not None]
        self.leases.live.update({(one.execution_id, one.fencing_token): one for one in placements})
        self.dispatcher.commit(placements, works[: len(placements)])
        return placements

    def enqueue(self, *works: Claimable) -> None:
        self.leases.queue.extend(works)
        self.dispatcher.wake()

    async def settle(self) -> None:
        """Let every task that was started run to its end."""
        for task in tuple(self.background._tasks):
            await task


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    clock, leases, fleet, random = FakeClock(), ScriptedLeases(), Fleet(), FakeRandom()
    async with Background() as background:
        batches = Batches(
            leases=leases,
            signer=signer(rsa_key("orders")),
            options=build.options(),
            clock=clock,
            random=random,
            background=background,
            observer=SilentObserver(),
        )
        yield Parts(
            dispatcher=Dispatcher(
                fleet=fleet,
                leases=leases,
                batches=batches,
                options=build.options(),
                clock=clock,
                random=random,
                background=background,
                observer=SilentObserver(),
            ),
            batches=batches,
            background=background,
            leases=leases,
            fleet=fleet,
            clock=clock,
        )
