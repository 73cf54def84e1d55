"""Rule 7: a halt ends what waits and what runs, in bounded steps."""

import pytest

from control_plane.executions.domain import EndReason, HaltScope
from control_plane.executions.halting import HALTED_AT_ONCE, Halter
from shared.digests import sha256_digest
from shared.ids import TenantId

SCOPE = HaltScope(tenant_id=TenantId("default"), template_digest=sha256_digest(b"manifest"))
REASON, ACTOR = EndReason.TEMPLATE_REVOKED, "spiffe://local/caller/admin"


class Executions:
    """Answers one prepared step after the other, then nothing."""

    def __init__(self, *steps):
        self.steps, self.limits = list(steps), []

    async def halt(self, scope, reason, *, actor, limit):
        assert (scope, reason, actor) == (SCOPE, REASON, ACTOR)
        self.limits.append(limit)
        return self.steps.pop(0) if self.steps else ((), ())


class Told(list):
    def cancel(self, requests):
        self.extend(requests)

    def changed(self, execution_ids):
        self.extend(execution_ids)


@pytest.mark.parametrize("count", [1, 3])
async def test_every_step_reaches_nodes_and_waiting_callers(count):
    executions = Executions(*(((f"ended-{n}",), (f"running-{n}",)) for n in range(count)))
    nodes, callers = Told(), Told()
    halter = Halter(executions=executions, placer=nodes, completions=callers)
    assert await halter.halt(SCOPE, REASON, actor=ACTOR) == count
    assert nodes == [f"running-{n}" for n in range(count)]
    assert callers == [f"ended-{n}" for n in range(count)]
    assert executions.limits == [HALTED_AT_ONCE] * (count + 1)


async def test_a_halt_ends_even_when_work_keeps_coming(monkeypatch):
    monkeypatch.setattr("control_plane.executions.halting.MAX_ROUNDS", 3)
    executions = Executions(*((("e",), ()) for _ in range(10)))
    halter = Halter(executions=executions, placer=Told(), completions=Told())
    assert await halter.halt(SCOPE, REASON, actor=ACTOR) == 0
    assert len(executions.limits) == 3
