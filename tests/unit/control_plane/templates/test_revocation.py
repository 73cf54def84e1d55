"""Rule 7: a revocation stops what waits and what runs, in bounded steps."""

import pytest

from control_plane.templates.revocation import STOPPED_AT_ONCE, TemplateStopper
from shared.digests import sha256_digest
from shared.ids import TenantId

TENANT, DIGEST, ACTOR = TenantId("default"), sha256_digest(b"manifest"), "spiffe://local/caller/admin"


class Executions:
    """Answers one prepared step after the other, then nothing."""

    def __init__(self, *steps):
        self.steps, self.limits = list(steps), []

    async def cancel_template(self, tenant_id, template_digest, *, actor, limit):
        assert (tenant_id, template_digest, actor) == (TENANT, DIGEST, ACTOR)
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
    stopper = TemplateStopper(executions=executions, placer=nodes, completions=callers)
    await stopper.stop_template(TENANT, DIGEST, actor=ACTOR)
    assert nodes == [f"running-{n}" for n in range(count)]
    assert callers == [f"ended-{n}" for n in range(count)]
    assert executions.limits == [STOPPED_AT_ONCE] * (count + 1)


async def test_a_revocation_ends_even_when_work_keeps_coming(monkeypatch):
    monkeypatch.setattr("control_plane.templates.revocation.MAX_ROUNDS", 3)
    executions = Executions(*((("e",), ()) for _ in range(10)))
    await TemplateStopper(executions=executions, placer=Told(), completions=Told()).stop_template(
        TENANT, DIGEST, actor=ACTOR
    )
    assert len(executions.limits) == 3
