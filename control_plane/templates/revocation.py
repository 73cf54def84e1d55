"""Stops what waits for or runs a revoked template (design rule 7). Changes no template."""

from typing import Final

from control_plane.executions.completions import Completions
from control_plane.executions.ports import ExecutionStore, Placer
from shared.digests import Digest
from shared.ids import TenantId
from shared.logs import get_logger

STOPPED_AT_ONCE: Final = 500
"""Executions that one transaction stops."""

MAX_ROUNDS: Final = 200
"""Bounds one revocation to 100,000 executions; a repeat of the revocation stops the rest."""

logger = get_logger(__name__)


class TemplateStopper:
    """Implements `RunningExecutions`."""

    def __init__(self, *, executions: ExecutionStore, placer: Placer, completions: Completions) -> None:
        self._executions = executions
        self._placer = placer
        self._completions = completions

    async def stop_template(self, tenant_id: TenantId, template_digest: Digest, *, actor: str) -> None:
        """See `RunningExecutions.stop_template`."""
        for _ in range(MAX_ROUNDS):
            ended, requests = await self._executions.cancel_template(
                tenant_id, template_digest, actor=actor, limit=STOPPED_AT_ONCE
            )
            self._placer.cancel(requests)
            if ended:
                self._completions.changed(ended)
            if not ended and not requests:
                return
        logger.warning("revocation left executions behind: revoke again", template_digest=template_digest)
