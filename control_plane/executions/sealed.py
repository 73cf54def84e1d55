"""Bodies that are encrypted, where they meet results and claims. Holds no key and no connection."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from control_plane.body_keys.sealing import BodyPlace
from control_plane.database.unit_of_work import DriverRecord
from control_plane.executions.domain import AttemptResult, Claimable, StoredBody
from control_plane.executions.ports import BodySealer
from control_plane.executions.rows import claimable_of
from shared.clock import Clock
from shared.errors import InternalError, KeyUnavailableError
from shared.ids import ExecutionId, TenantId
from shared.logs import get_logger

LOCKED_FOR: Final = timedelta(seconds=1)
"""How long a claim passes over what has no key in memory."""
MAX_LOCKED: Final = 1024
"""Of those, remembered."""

TENANTS_OF: Final = "SELECT execution_id, tenant_id FROM executions WHERE execution_id = ANY($1::text[])"

logger = get_logger(__name__)


async def seal_results(
    sealer: BodySealer, results: Sequence[AttemptResult], tenants: Mapping[ExecutionId, TenantId]
) -> list[AttemptResult]:
    """Return results with sealed bodies; without those whose key cannot be had: nodes keep them."""
    sealed = []
    for result in results:
        tenant_id = tenants.get(result.execution_id)
        if tenant_id is None:
            sealed.append(result)  # of an execution that is not there: nothing of it is stored
            continue
        try:
            sealed.append(
                replace(
                    result,
                    output=await _sealed(sealer, tenant_id, result.output),
                    log=await _sealed(sealer, tenant_id, result.log),
                    recording=await _sealed(sealer, tenant_id, result.recording),
                )
            )
        except KeyUnavailableError as error:
            logger.warning(
                "a result cannot be stored: there is no key for its bodies",
                tenant_id=tenant_id,
                execution_id=result.execution_id,
                error=str(error),
            )
    return sealed


async def _sealed(sealer: BodySealer, tenant_id: TenantId, body: StoredBody | None) -> StoredBody | None:
    if body is None or body.content is None:
        return body
    sealed = await sealer.seal_result(tenant_id, body.body_id, body.content)
    return body if sealed is None else replace(body, sealed=sealed)


class LockedInputs:
    """Claimed inputs that are sealed: opened by keys in memory, others passed over for a moment.

    A claim holds its rows locked: nobody is asked for a key meanwhile.
    """

    def __init__(self, sealer: BodySealer, clock: Clock) -> None:
        self._sealer = sealer
        self._clock = clock
        self._locked: OrderedDict[ExecutionId, float] = OrderedDict()

    def passed(self) -> tuple[ExecutionId, ...]:
        """Return what the next claim shall not look at."""
        now = self._clock.monotonic()
        while self._locked and next(iter(self._locked.values())) <= now:
            self._locked.popitem(last=False)
        return tuple(self._locked)

    def opened(self, rows: Sequence[DriverRecord]) -> list[Claimable]:
        """Return what rows of a claim describe, without those that cannot be opened now."""
        found = (self._opened(claimable_of(row)) for row in rows)
        return [one for one in found if one is not None]

    def _opened(self, work: Claimable) -> Claimable | None:
        body = work.run.input
        if body.content is None or len(body.content) == body.size_bytes:
            return work
        place = BodyPlace(tenant_id=work.run.tenant_id, body_id=body.body_id, size_bytes=body.size_bytes)
        try:
            content = self._sealer.open_at_once(place, body.content)
        except InternalError as error:
            # One such execution must not stand in the way of the queue: it waits for its run deadline.
            logger.exception(
                "an input cannot be opened", execution_id=work.run.execution_id, error=str(error)
            )
            content = None
        if content is None:
            self._pass_over(work.run.execution_id)
            return None
        return replace(work, run=replace(work.run, input=replace(body, content=content)))

    def _pass_over(self, execution_id: ExecutionId) -> None:
        self._locked[execution_id] = self._clock.monotonic() + LOCKED_FOR.total_seconds()
        self._locked.move_to_end(execution_id)
        if len(self._locked) > MAX_LOCKED:
            self._locked.popitem(last=False)
