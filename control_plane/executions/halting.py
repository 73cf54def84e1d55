"""Ends what a closed template or an emergency stop must not run (design rule 7). Decides nothing."""

from typing import Final

from control_plane.executions.completions import Completions
from control_plane.executions.domain import EndReason, HaltScope
from control_plane.executions.ports import ExecutionStore, Placer
from shared.logs import get_logger

HALTED_AT_ONCE: Final = 500
"""Executions that one transaction ends."""

MAX_ROUNDS: Final = 200
"""Bounds one call to 100,000 executions; a repeat ends the rest."""

logger = get_logger(__name__)


class Halter:
    """Ends executions, in bounded steps; nodes and waiting callers are told after each."""

    def __init__(self, *, executions: ExecutionStore, placer: Placer, completions: Completions) -> None:
        self._executions = executions
        self._placer = placer
        self._completions = completions

    async def halt(self, scope: HaltScope, reason: EndReason, *, actor: str) -> int:
        """End what the reason does not spare (see `Execution.halt`).

        Returns how many attempts nodes were told to stop.

        Raises:
            DatabaseUnavailableError: Postgres is away; what was not reached is found by the next call.
        """
        told = 0
        for _ in range(MAX_ROUNDS):
            ended, requests = await self._executions.halt(scope, reason, actor=actor, limit=HALTED_AT_ONCE)
            self._placer.cancel(requests)
            told += len(requests)
            if ended:
                self._completions.changed(ended)
            if not ended and not requests:
                return told
        logger.warning(
            "a halt left executions behind: repeat it", reason=reason, template=scope.template_digest
        )
        return told
