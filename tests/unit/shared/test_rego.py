"""What upload refuses of Rego, and where it says that it stands."""

import time

import agentfactory_engine
import pytest

from shared.rego import EVALUATION_TIME, MAX_PROBLEMS, TOO_LONG, TRIES, evaluate, inspect_rego

HEAD = "package agentfactory\n\n"


def problems(source: str, **data: object) -> list[str]:
    return [str(problem) for problem in inspect_rego({"a.rego": HEAD + source}, data).problems]


@pytest.mark.parametrize(
    ("source", "place", "said"),
    [
        ('x := http.send({"url": "http://a"})', "a.rego:3:", "http.send is refused"),
        ("x := [p | walk(input, [p, _])]", "a.rego:3:", "walk is refused"),
        ('x := strings.count("a", "b")', "a.rego:3:", "strings.count is refused"),
        ('x := io.jwt.decode("a")', "a.rego:3:", "io.jwt.decode is neither"),
        ("x := opa.runtime()", "a.rego:3:", "opa.runtime is refused"),
        ("x := nowhere(1)", "a.rego:3:", "nowhere is neither"),
        ("x := 1.5", "a.rego:3:", "1.5 is no whole number"),
        ("x := 1e3", "a.rego:3:", "1e3 is no whole number"),
        ("x := 9007199254740992", "a.rego:3:", "no whole number below 2^53"),
        ("x := 1 / input.y", "a.rego:3:", "/ makes fractions"),
        ('x if "a", "a" in {"a"}', "a.rego:3:", "false for sets"),
        ("p[x].r contains 1 if some x in input.xs", "a.rego:3:", "goes on behind a variable"),
        ("import future.keywords.not\n", "a.rego:3:", "import future.keywords.not"),
        ("import future.keywords\n", "a.rego:3:", "import future.keywords"),
        ("count(x) := 1", "a.rego:3:", "name of a built-in"),
        ("x if lower(input.a, y)", "a.rego:3:", "lower takes 1 arguments"),
        ("f(x) := x\ny if f(1) with f as walk", "a.rego:4:", "walk is refused"),
        ("x := {", "a.rego:", "an OPA server has it"),
        ("x := $`a {b}`", "a.rego:3:", "an OPA server has it"),
        (f'x := "{"a" * 1100}"', "a.rego:3:", "maximum column width"),
        (f"x := {'[' * 100}{']' * 100}", "a.rego:3:", "nested deeper"),
    ],
)
def test_what_is_refused_is_named_with_its_place(source, place, said):
    assert any(problem.startswith(place) and said in problem for problem in problems(source)), problems(
        source
    )


@pytest.mark.parametrize(
    "source",
    [
        "x := count(input.a) + 1",
        "x if some k, v in input.xs",
        "default f(_) := 1\ny := f(2)",
        "import data.lib\nx := lib.f(1)",
        "x := data.lib.f(1)",
        "import rego.v1\nx if input.y",
        'x := sprintf("%d of %s", [1, "a"])',
        "x := -1 * 9007199254740991 % 7",
    ],
)
def test_what_answers_the_same_is_taken(source):
    assert problems(source) == []


def test_every_problem_of_every_file_is_told_up_to_a_bound():
    files = dict.fromkeys(("b.rego", "a.rego"), HEAD + "x := walk(1)\ny := 1.5\n")
    found = inspect_rego(files, {}).problems
    assert [(one.path, one.line) for one in found] == [
        ("a.rego", 3),
        ("a.rego", 4),
        ("b.rego", 3),
        ("b.rego", 4),
    ]
    many = {"a.rego": HEAD + "".join(f"x{number} := 1.5\n" for number in range(1000))}
    assert len(inspect_rego(many, {}).problems) == MAX_PROBLEMS


def test_fractions_in_the_data_are_refused_with_their_path():
    (problem,) = problems("x := 1", tenants={"a": [1, {"b": 2.5}]})
    assert problem.startswith("data.tenants.a[1].b: 2.5")


@pytest.mark.parametrize("call", ["time.now_ns()", 'rand.intn("a", 3)', 'uuid.rfc4122("a")'])
def test_clock_and_randomness_are_recognised(call):
    assert not inspect_rego({"a.rego": f"{HEAD}x := {call}\n"}, {}).is_pure
    assert inspect_rego({"a.rego": f"{HEAD}x := 1\n"}, {}).is_pure


def test_what_cannot_be_read_is_not_called_pure():
    assert not inspect_rego({"a.rego": "package"}, {}).is_pure


class Preempted:
    """The engine on a machine whose processor others have: its time is over before it has worked."""

    def __init__(self, times: int, *, works: bool = False):
        self.left = times
        self.works = works
        self.asked = 0

    def evaluate(self, rule: str, input_json: str) -> str:
        self.asked += 1
        if self.left == 0:
            return "true"
        self.left -= 1
        until = time.thread_time() + EVALUATION_TIME.total_seconds() * 0.6
        while self.works and time.thread_time() < until:
            pass
        raise agentfactory_engine.PolicyError(f"{rule}: execution {TOO_LONG} (elapsed=1ns, limit=1ns)")


def test_a_policy_that_got_no_processor_is_asked_again():
    preempted = Preempted(TRIES - 1)
    assert (evaluate(preempted, "data.x", "{}"), preempted.asked) == ("true", TRIES)


def test_a_policy_that_never_gets_one_has_no_answer():
    with pytest.raises(agentfactory_engine.PolicyError, match=TOO_LONG):
        evaluate(Preempted(TRIES), "data.x", "{}")


def test_a_policy_that_works_for_its_whole_time_is_not_asked_again():
    working = Preempted(1, works=True)
    with pytest.raises(agentfactory_engine.PolicyError, match=TOO_LONG):
        evaluate(working, "data.x", "{}")
    assert working.asked == 1
