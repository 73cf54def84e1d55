"""No run passes its budget, whatever its guest asks and whatever an endpoint reports."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from data_plane.host_calls.llm import Answer, Budget, Completion, Prices
from shared.errors import HostCallRefusedError
from shared.manifest import LlmCapability

reports = st.one_of(st.none(), st.integers(-(10**12), 10**12), st.text(max_size=3), st.booleans())
calls = st.lists(
    st.tuples(
        st.text(max_size=60),
        st.one_of(st.none(), st.integers(1, 400)),
        reports,
        reports,
        st.text(max_size=80),
        st.sampled_from(["answered", "refused", "lost"]),
    ),
    max_size=6,
)
prices = st.builds(Prices, prompt=st.integers(0, 10**7), answer=st.integers(0, 10**7))


@given(calls, prices, st.integers(1, 2000), st.one_of(st.just(0), st.integers(1, 10_000)))
def test_a_budget_is_never_passed(calls, price, max_tokens, max_cost_micros):
    capability = LlmCapability(models=("a/b",), max_tokens=max_tokens, max_cost_micros=max_cost_micros)
    budget = Budget(capability=capability)
    for text, wanted, prompt, answer, said, fate in calls:
        asked = Completion(
            endpoint="a",
            model="b",
            prompt={"messages": [{"role": "user", "content": text}]},
            max_tokens=wanted,
            timeout=timedelta(seconds=1),
        )
        before = budget.tokens
        try:
            taken = budget.take(asked, price)
        except HostCallRefusedError:
            assert budget.tokens == before
            continue
        assert taken.answer_tokens >= 1
        if fate == "refused":
            budget.give_back(taken)
            assert budget.tokens == before
        elif fate == "answered":
            message = {"role": "assistant", "content": said}
            heard = Answer(message=message, finish_reason="", prompt_tokens=prompt, answer_tokens=answer)
            budget.settle(taken, taken.counted(heard))
            assert budget.tokens > before
        assert 0 <= budget.tokens <= max_tokens
        assert budget.cost_micros >= 0
        assert not max_cost_micros or budget.cost_micros <= max_cost_micros
