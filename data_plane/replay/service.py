"""The use case of a replay: check what it is made of, run it again, compare."""

from dataclasses import dataclass

import agentfactory_engine

from data_plane.attempt import call_context_of, guest_request, judged
from data_plane.host_calls.kv import encode_writes
from data_plane.replay.domain import (
    Material,
    PartName,
    Rerun,
    Step,
    check_material,
    compare,
    require_comparable,
    require_replayable,
)
from data_plane.replay.ports import ReplayEngine
from data_plane.replay.recording import PlayedCalls, free_calls, parse_recording
from shared.digests import sha256_digest
from shared.errors import ModuleInvalidError
from shared.manifest import Manifest
from shared.orders import Order
from shared.receipts import ReceiptPredicate


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of running it again."""

    rerun: Rerun
    steps: tuple[Step, ...]


async def replay(
    order: Order,
    receipt: ReceiptPredicate,
    manifest: Manifest,
    material: Material,
    *,
    engine: ReplayEngine,
) -> Replayed:
    """Run a verified order again, on material that nobody verified yet, and compare with its receipt.

    A node's own ceilings are not in the order: a run that one of them ended is compared as ordered.

    Raises:
        PackageAlteredError: The material is not what order and receipt commit to.
        NotReplayableError: It could not come out the same by any rule.
        ModuleInvalidError, UnavailableError, WorkerCrashedError: As `ReplayEngine.run`.
    """
    check_material(order, receipt, material)
    recorded = material.bodies.get(PartName.RECORDING)
    recording = () if recorded is None else parse_recording(recorded.content)
    require_replayable(order, receipt, material, imports=imports_of(material.module), recording=recording)
    require_comparable(receipt, engine.engine(order.profile))
    limits = order.limits.limited_by(manifest.limits)
    calls = PlayedCalls(recording, free=free_calls(call_context_of(order, limits)))
    request = guest_request(
        order,
        limits=limits,
        parameters=material.parameters,
        content=material.bodies[PartName.INPUT].content,
    )
    result = await engine.run(material.module, request, calls)
    result = await judged(result, manifest.output_schema, limits)
    calls.finish()
    writes = encode_writes(calls.writes)
    rerun = Rerun(
        result=result,
        kv_writes_digest=sha256_digest(writes) if writes else None,
        calls_asked=calls.asked,
        mismatch=calls.mismatch,
    )
    return Replayed(rerun=rerun, steps=compare(order, receipt, material, rerun))


def imports_of(module: bytes) -> frozenset[str]:
    """Return the names of what the module imports.

    Raises:
        ModuleInvalidError: It is no module that agents are made of.
    """
    try:
        return frozenset(one.name for one in agentfactory_engine.inspect_module(module).imports)
    except agentfactory_engine.InvalidModuleError as error:
        raise ModuleInvalidError(str(error)) from error
