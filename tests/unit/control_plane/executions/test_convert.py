from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.executions.convert import execution_to_proto
from control_plane.executions.lifecycle import Execution
from tests.builders.executions import Builder

SECONDS = st.integers(-60_000_000_000, 250_000_000_000)
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5.5))])
TIMES = st.builds(
    lambda seconds, microseconds, zone: (
        datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds, microseconds=microseconds)
    ).astimezone(zone),
    SECONDS,
    st.integers(0, 999_999),
    ZONES,
)


def execution(at: datetime) -> Execution:
    run = Builder().execution().run
    return Execution(
        execution_id=run.execution_id,
        tenant_id=run.tenant_id,
        agent_id=run.agent_id,
        agent_name=run.agent_name,
        template_digest=run.template_digest,
        caller=run.caller,
        decision_id=run.decision_id,
        media_type=run.media_type,
        input_body_id=run.input.body_id,
        input_commitment=run.input.commitment,
        input_bytes=run.input.size_bytes,
        run_deadline_at=run.run_deadline_at,
        retry_is_safe=run.retry_is_safe,
        max_attempts=3,
        created_at=at,
        claimable_at=at,
    )


@settings(deadline=None)  # an example that meets a busy machine is no failure; pytest bounds the whole
@given(TIMES)
def test_a_time_becomes_the_timestamp_that_protobuf_makes_of_it(at: datetime) -> None:
    expected = Timestamp()
    expected.FromDatetime(at)
    assert execution_to_proto(execution(at)).created_at == expected


def test_what_has_not_happened_has_no_time() -> None:
    message = execution_to_proto(replace(execution(datetime.now(UTC)), started_at=None))
    assert not message.HasField("started_at")
