"""What this replica's callers asked for, as spans: from the request to the answer. Decides nothing."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from control_plane.executions.domain import ExecutionState
from control_plane.executions.lifecycle import Execution
from control_plane.policy.domain import Subject
from shared.errors import AgentFactoryError, InternalError
from shared.ids import ExecutionId
from shared.tracing import NO_TRACER, OpenTrails, SpanKind, Tracer, Trail

SERVICE = "agentfactory.v1.ExecutionService"


class ExecutionTrails:
    """One trail for each request for an execution, also of those that share a stream."""

    def __init__(self, tracer: Tracer = NO_TRACER) -> None:
        self._open = OpenTrails[ExecutionId](tracer)

    def begin(
        self, execution_id: ExecutionId, subject: Subject, *, agent: str, method: str, incoming: str
    ) -> Trail:
        """Begin the trail of a request; whoever begins it sees to its end."""
        trail = self._open.begin(execution_id, f"{SERVICE}/{method}", incoming, kind=SpanKind.SERVER)
        trail.note(execution_id=execution_id, tenant_id=subject.tenant_id, agent=agent)
        return trail

    @contextmanager
    def request(
        self, execution_id: ExecutionId, subject: Subject, *, agent: str, method: str, incoming: str
    ) -> Iterator[Trail]:
        """Begin a trail that ends with the block, as failed if that raises."""
        trail = self.begin(execution_id, subject, agent=agent, method=method, incoming=incoming)
        try:
            yield trail
        except BaseException as error:
            self.refused(execution_id, error)
            raise
        finally:
            self._open.end(execution_id)

    def of(self, execution_id: ExecutionId) -> Trail:
        """Return the trail of an execution that is asked for here."""
        return self._open.of(execution_id)

    def forget(self, execution_id: ExecutionId) -> None:
        """What was asked for is traced elsewhere."""
        self._open.forget(execution_id)

    def ended(self, asked: ExecutionId, execution: Execution) -> None:
        """The caller is told of the end; a repeat is told of another execution than it would have made."""
        is_good = execution.state is ExecutionState.SUCCEEDED
        self._open.end(
            asked,
            failed="" if is_good else execution.state,
            execution_id=execution.execution_id,
            state=execution.state,
        )

    def answered(self, asked: ExecutionId, result: Execution | AgentFactoryError) -> None:
        """The caller is told of the end, or why there is none."""
        if isinstance(result, Execution):
            self.ended(asked, result)
        else:
            self.refused(asked, result)

    def abandoned(self, asked: ExecutionId) -> None:
        """The caller has gone away, unless it had its answer; what it asked for goes on."""
        self._open.end(asked, caller_gone=True)

    def refused(self, asked: ExecutionId, error: BaseException) -> None:
        """The caller gets an error, or has gone away."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.abandoned(asked)
        else:
            reason = error.reason if isinstance(error, AgentFactoryError) else InternalError.reason
            self._open.end(asked, failed=str(reason))
