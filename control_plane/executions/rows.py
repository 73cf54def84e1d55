"""Rows to values and back, for the two stores. Holds no connection and no decision."""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Final, Protocol

from agentfactory.v1 import common_pb2
from sqlalchemy import select

from control_plane.database.tables import attempts, executions
from control_plane.executions.domain import (
    AttemptState,
    Claimable,
    ExecutionState,
    ResourcesUsed,
    RunSpec,
    StoredBody,
)
from control_plane.executions.lifecycle import Attempt, Execution
from control_plane.paging import BAD_TOKEN, decode_token
from shared.errors import InvalidInputError
from shared.ids import EXECUTION, ExecutionId, parse_id
from shared.resources import resources_from_proto, resources_to_proto


class Row(Protocol):
    """A row of SQLAlchemy or of the driver."""

    def __getitem__(self, column: str, /) -> Any:
        """Return the value of a column."""


_e, _a = executions.c, attempts.c

EXECUTION_COLUMNS: Final = (
    _e.execution_id,
    _e.tenant_id,
    _e.agent_id,
    _e.agent_name,
    _e.template_digest,
    _e.caller,
    _e.decision_id,
    _e.media_type,
    _e.input_body_id,
    _e.input_commitment,
    _e.input_bytes,
    _e.run_deadline_at,
    _e.retry_is_safe,
    _e.max_attempts,
    _e.created_at,
    _e.state,
    _e.cancel_requested,
    _e.fencing_token,
    _e.counted_attempts,
    _e.excluded_nodes,
    _e.runs_alone,
    _e.pending_reason,
    _e.claimable_at,
    _e.exit_code,
    _e.limit_name,
    _e.trap,
    _e.reason,
    _e.resources_used,
    _e.receipt_id,
    _e.output_body_id,
    _e.output_commitment,
    _e.output_bytes,
    _e.log_body_id,
    _e.log_bytes,
    _e.recording_body_id,
    _e.recording_bytes,
    _e.started_at,
    _e.ended_at,
)
"""What an `Execution` is made from."""

EXECUTION_COLUMN_NAMES: Final = tuple(column.name for column in EXECUTION_COLUMNS)

SELECT_EXECUTIONS: Final = select(*EXECUTION_COLUMNS)
SELECT_ATTEMPTS: Final = select(attempts).order_by(_a.execution_id, _a.fencing_token)


def execution_of(row: Row, tries: Sequence[Attempt] = (), output: bytes | None = None) -> Execution:
    """Return the execution that a row with `EXECUTION_COLUMNS` describes."""
    return Execution(
        execution_id=row["execution_id"],
        tenant_id=row["tenant_id"],
        agent_id=row["agent_id"],
        agent_name=row["agent_name"],
        template_digest=row["template_digest"],
        caller=row["caller"],
        decision_id=row["decision_id"],
        media_type=row["media_type"],
        input_body_id=row["input_body_id"],
        input_commitment=row["input_commitment"],
        input_bytes=row["input_bytes"],
        run_deadline_at=row["run_deadline_at"],
        retry_is_safe=row["retry_is_safe"],
        max_attempts=row["max_attempts"],
        created_at=row["created_at"],
        state=ExecutionState(row["state"]),
        cancel_requested=row["cancel_requested"],
        fencing_token=row["fencing_token"],
        counted_attempts=row["counted_attempts"],
        excluded_nodes=tuple(row["excluded_nodes"]),
        runs_alone=row["runs_alone"],
        pending_reason=row["pending_reason"],
        claimable_at=row["claimable_at"],
        exit_code=row["exit_code"],
        limit=row["limit_name"],
        trap=row["trap"],
        reason=row["reason"],
        resources_used=resources_of(row["resources_used"]),
        receipt_id=row["receipt_id"],
        output_body_id=row["output_body_id"],
        output_commitment=row["output_commitment"],
        output_bytes=row["output_bytes"] or 0,
        log_body_id=row["log_body_id"],
        log_bytes=row["log_bytes"] or 0,
        recording_body_id=row["recording_body_id"],
        recording_bytes=row["recording_bytes"] or 0,
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        attempts=tuple(tries),
        output=output,
    )


def attempt_of(row: Row) -> Attempt:
    """Return the attempt that a row of `attempts` describes."""
    return Attempt(
        number=row["attempt_number"],
        fencing_token=row["fencing_token"],
        node_id=row["node_id"],
        boot_id=row["boot_id"],
        order_id=row["order_id"],
        state=AttemptState(row["state"]),
        receipt_id=row["receipt_id"],
        reason=row["reason"],
        leased_at=row["leased_at"],
        lease_expires_at=row["lease_expires_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        unsafe_call_at=row["unsafe_call_at"],
    )


def body_of_row(row: Row) -> StoredBody:
    """Return the body that a row of `bodies` describes, without its content."""
    return StoredBody(
        body_id=row["body_id"],
        salt=row["salt"],
        commitment=row["commitment"],
        digest=row["digest"],
        size_bytes=row["size_bytes"],
        content=None,
    )


def claimable_of(row: Row) -> Claimable:
    """Return the waiting execution that a row of the claim describes."""
    run = RunSpec(
        execution_id=row["execution_id"],
        tenant_id=row["tenant_id"],
        caller=row["caller"],
        agent_id=row["agent_id"],
        agent_name=row["agent_name"],
        template_digest=row["template_digest"],
        module_digest=row["module_digest"],
        parameters=row["parameters"],
        parameters_digest=row["parameters_digest"],
        input=StoredBody(
            body_id=row["input_body_id"],
            salt=row["salt"],
            commitment=row["input_commitment"],
            digest=row["digest"],
            size_bytes=row["input_bytes"],
            content=row["content"],
        ),
        media_type=row["media_type"],
        profile=row["profile"],
        seed=row["seed"],
        clock_start_at=row["clock_start_at"],
        limits=row["limits"],
        capabilities=row["capabilities"],
        retry_is_safe=row["retry_is_safe"],
        decision_id=row["decision_id"],
        policy_digest=row["policy_digest"],
        traceparent=row["traceparent"],
        run_deadline_at=row["run_deadline_at"],
    )
    return Claimable(
        run=run,
        attempt_number=row["attempt_number"] + 1,
        fencing_token=row["fencing_token"] + 1,
        excluded_nodes=tuple(row["excluded_nodes"]),
        runs_alone=row["runs_alone"],
    )


def resources_bytes(used: ResourcesUsed | None) -> bytes | None:
    """Return resources as they are stored: agentfactory.v1.ResourcesUsed."""
    if used is None:
        return None
    return bytes(resources_to_proto(used).SerializeToString(deterministic=True))


def resources_of(data: bytes | None) -> ResourcesUsed | None:
    """Return resources from their stored form."""
    if data is None:
        return None
    return resources_from_proto(common_pb2.ResourcesUsed.FromString(data))


def request_hmac(key: bytes, fingerprint: bytes) -> bytes:
    """Return what is stored of a request's fingerprint (rule 8)."""
    return hmac.new(key, fingerprint, hashlib.sha256).digest()


def execution_id_of_token(token: str) -> ExecutionId:
    """Return the last execution of the page before.

    Raises:
        InvalidInputError: The token is not one of ours.
    """
    try:
        return parse_id(EXECUTION, decode_token(token))
    except InvalidInputError as error:
        raise InvalidInputError(BAD_TOKEN) from error
