"""Decisions as messages of the contract."""

from datetime import datetime, timedelta

from agentfactory.v1 import policy_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.policy.bundles import RecordedDecision


def decision_to_proto(decision: RecordedDecision, *, content: bytes) -> policy_pb2.Decision:
    """Return a decision with this as its input."""
    return policy_pb2.Decision(
        decision_id=decision.decision_id,
        question=decision.question,
        allowed=decision.allowed,
        reason=decision.reason,
        reasons=decision.reasons,
        input=content,
        input_digest=decision.input_digest,
        policy_digest=decision.policy_digest,
        result_digest=decision.result_digest,
        duration=duration(timedelta(microseconds=decision.duration_us)),
        engine=decision.engine,
        engine_decision_id=decision.engine_decision_id,
        decided_at=timestamp(decision.decided_at),
    )


def timestamp(at: datetime) -> Timestamp:
    """Return a time as a message."""
    message = Timestamp()
    message.FromDatetime(at)
    return message


def duration(took: timedelta) -> Duration:
    """Return a length of time as a message."""
    message = Duration()
    message.FromTimedelta(took)
    return message
