"""One order from the stream to its receipt, through everything that is real on the node."""

import json

from shared.outcomes import Outcome
from tests.fakes.control_plane import ScriptedControlPlane, Template


async def test_order_runs_and_its_receipt_carries_the_output(
    control_plane: ScriptedControlPlane, start_node, actor: Template
):
    await start_node()
    session = await control_plane.session()
    job = control_plane.job(session, actor, b"sleep 1")

    await control_plane.send(session, job)
    receipt = await control_plane.receipt_of(job)

    assert receipt.predicate.outcome is Outcome.SUCCEEDED, receipt.predicate
    assert json.loads(control_plane.output_of(receipt)) == {"slept_ms": 1}
