from agentfactory.v1 import common_pb2

from control_plane.executions.encoding import limits_bytes, limits_of_bytes
from shared.limits import DEFAULT_LIMITS, Limits


def test_limits_come_back_as_they_were():
    limits = Limits(wall_ms=5, fuel=7, scratch_bytes=0, host_calls=0)
    assert limits_of_bytes(limits_bytes(limits)) == limits


def test_limits_stored_before_the_later_ones_existed_get_their_defaults():
    stored = common_pb2.Limits(
        wall_ms=10_000,
        cpu_ms=10_000,
        memory_bytes=1 << 26,
        output_bytes=1 << 20,
        log_bytes=1 << 18,
        open_files=32,
    )
    assert limits_of_bytes(stored.SerializeToString()) == DEFAULT_LIMITS
