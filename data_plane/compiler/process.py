"""One compiling node as a whole: looks for work, keeps its certificate, and says whether it can work."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from data_plane.compiler.metrics import CompilerMetrics
from data_plane.compiler.remote import RemoteDesk
from data_plane.compiler.service import CompileService
from data_plane.enrollment import make_csr, renewal_due_at
from data_plane.identity import NodeIdentity, check_certificate, load_tls_key, write_certificate
from shared.admin_http import Readiness
from shared.clock import Clock
from shared.errors import AgentFactoryError, NodeEvictedError
from shared.logs import get_logger
from shared.paths import NodePaths
from shared.rpc.identity import node_spiffe_id

logger = get_logger(__name__)

RETRY: Final = timedelta(seconds=5)
"""After a failure: of the control plane, or of whoever keeps the compiler key."""


@dataclass(slots=True, kw_only=True)
class CompilingNode:
    """Runs until it is stopped, or its identity is ended."""

    identity: NodeIdentity
    paths: NodePaths
    desk: RemoteDesk
    service: CompileService
    metrics: CompilerMetrics
    clock: Clock
    poll: timedelta
    """Between two looks when there was nothing to do."""
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _problem: str = "it has not looked yet"

    def stop(self) -> None:
        """End after what is being compiled now is given up."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until stopped.

        Raises:
            NodeEvictedError: The control plane has ended this node's identity.
        """
        working = asyncio.create_task(self._work())
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, stopped):
                task.cancel()
                with suppress(asyncio.CancelledError, AgentFactoryError):
                    await task
            await self.desk.close()

    async def readiness(self) -> Readiness:
        """Whether the last look went well."""
        return Readiness(ready=not self._problem, detail=self._problem)

    async def _work(self) -> None:
        while True:
            pause = await self._step()
            if pause:
                await asyncio.sleep(pause.total_seconds())

    async def _step(self) -> timedelta:
        """Look once; return how long to wait until the next look."""
        try:
            await self._keep_certificate()
            found = await self.service.look()
        except NodeEvictedError:
            raise
        except AgentFactoryError as error:
            self._problem = f"{error.reason}: {error}"
            self.metrics.ready.set(0)
            logger.warning("nothing is compiled now", reason=error.reason, detail=str(error))
            # The next control plane, if there are several.
            await self.desk.close()
            return RETRY
        self._problem = ""
        self.metrics.ready.set(1)
        return timedelta(0) if found else self.poll

    async def _keep_certificate(self) -> None:
        left = self.desk.certificate.not_after - self.clock.now()
        self.metrics.certificate_seconds.set(left.total_seconds())
        if self.clock.now() < renewal_due_at(self.desk.certificate):
            return
        chain = await self.desk.renew_certificate(make_csr(load_tls_key(self.identity.tls_key_pem)))
        name = node_spiffe_id(self.identity.installation, self.identity.node_id)
        check_certificate(chain, tls_key_pem=self.identity.tls_key_pem, spiffe_id=name)
        await self.desk.use_certificate(
            await asyncio.to_thread(write_certificate, self.paths.certificate, chain)
        )
        logger.info("certificate renewed", not_after=self.desk.certificate.not_after.isoformat())
