"""Random arithmetic under the profile portable: every bit of every result is the same on both engines, NaNs included."""

import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.outcomes import Outcome
from tests.integration.replay.test_second_engine import both, request_of, seen
from tests.integration.sandbox.conftest import wat

FLOATS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    # NaNs of every sign and payload, which no text but bits can say.
    st.integers(0, 2**64 - 1).map(lambda bits: bits | 0x7FF0_0000_0000_0001),
)
DOUBLE_OPS = ("add", "sub", "mul", "div", "min", "max", "copysign")
DOUBLE_STEPS = ("sqrt", "neg", "abs", "ceil", "floor", "trunc", "nearest")
TURNS = (
    "f64.promote_f32 (f32.demote_f64 {})",
    "f64.convert_i64_s (i64.trunc_sat_f64_s {})",
    "f64.convert_i64_u (i64.trunc_sat_f64_u {})",
    "f64.reinterpret_i64 (i64.rotl (i64.reinterpret_f64 {}) (i64.const 7))",
)


def constant(value: float) -> str:
    bits = value if isinstance(value, int) else struct.unpack("<q", struct.pack("<d", value))[0]
    return f"(f64.reinterpret_i64 (i64.const {bits}))"


def deeper(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("(f64.{} {} {})".format, st.sampled_from(DOUBLE_OPS), inner, inner),
        st.builds("(f64.{} {})".format, st.sampled_from(DOUBLE_STEPS), inner),
        st.builds(lambda turn, one: f"({turn.format(one)})", st.sampled_from(TURNS), inner),
    )


EXPRESSIONS = st.recursive(FLOATS.map(constant), deeper, max_leaves=12)


def printing(expressions: list[str]) -> bytes:
    """Return a module that writes the bits of each value."""
    stores = "\n".join(
        f"(f64.store (i32.const {64 + 8 * index}) {expression})"
        for index, expression in enumerate(expressions)
    )
    return wat(f"""(module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func (export "_start")
        {stores}
        (i32.store (i32.const 0) (i32.const 64))
        (i32.store (i32.const 4) (i32.const {8 * len(expressions)}))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))""")


@given(expressions=st.lists(EXPRESSIONS, min_size=20, max_size=60))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
async def test_every_bit_is_the_same(expressions: list[str]) -> None:
    first, second = await both(printing(expressions), request_of())
    assert (first.outcome, len(first.stdout)) == (Outcome.SUCCEEDED, 8 * len(expressions))
    assert seen(first) == seen(second)
