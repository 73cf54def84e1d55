"""Says what of Rego modules the embedded engine refuses or would answer otherwise than OPA."""

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import agentfactory_engine
from agentfactory_engine import PolicyUse

from shared.canonical import MAX_SAFE_INTEGER
from shared.errors import PolicyInvalidError
from shared.rego_builtins import FORBIDDEN_IMPORTS, IMPURE, REFUSED, SAME

EVALUATION_TIME: Final = timedelta(milliseconds=100)
"""The bound on one evaluation."""
TOO_LONG: Final = "exceeded time limit"
"""How the engine says so."""
TRIES: Final = 10

MAX_PROBLEMS: Final = 50
"""That are told of one bundle."""

_POSITION: Final = re.compile(r"--> (?P<path>.*):(?P<line>\d+):(?P<column>\d+)$", re.MULTILINE)
_GUARDED: Final = dict(agentfactory_engine.guarded_builtins())
_ELSEWHERE: Final = "; an OPA server has it"
_DIFFERS: Final = {
    "import": "import {} is not in the embedded engine",
    "number": "{} is no whole number below 2^53, and the embedded engine would lose digits",
    "membership": "`{}` is false for sets in the embedded engine: use `some key, value in …`, or compare",
    "operator": "{} makes fractions, and the embedded engine would lose digits",
    "head": "the head {} goes on behind a variable, where the embedded engine loses values",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegoProblem:
    """One place that keeps modules from being loaded."""

    path: str
    line: int
    """From 1; 0: the place is not in a line of text."""
    column: int
    construct: str
    """What stands there, e.g. ``walk``."""
    message: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegoReport:
    """What reading the modules found."""

    problems: tuple[RegoProblem, ...]
    """In the order of files and lines, `MAX_PROBLEMS` at most; none: it answers as OPA does."""
    is_pure: bool
    """Whether equal inputs get equal answers. Said of nothing that cannot be read."""


def load_rego(files: Mapping[str, str], data_json: str) -> tuple[agentfactory_engine.Policy, bool]:
    """Return modules (path to text) ready to be asked, and whether equal inputs get equal answers.

    Raises:
        PolicyInvalidError: They cannot be read, or use what the embedded engine has not; it names the places.
    """
    report = inspect_rego(files, json.loads(data_json))
    if report.problems:
        raise PolicyInvalidError("; ".join(map(str, report.problems)))
    bound_ms = EVALUATION_TIME // timedelta(milliseconds=1)
    try:
        policy = agentfactory_engine.Policy(list(files.items()), data_json, timeout_ms=bound_ms)
    except agentfactory_engine.PolicyError as error:
        raise PolicyInvalidError(f"{', '.join(files)}: {error}") from error
    return policy, report.is_pure


def evaluate(policy: agentfactory_engine.Policy, rule: str, input_json: str) -> str:
    """Return the JSON value of a rule. A policy that did not get its time of a busy machine is asked again.

    The engine's bound is of time that passes, which says little where others take the processor.

    Raises:
        agentfactory_engine.PolicyError: It has no answer, or has worked for its whole time.
    """
    for _ in range(TRIES - 1):
        before = time.thread_time()
        try:
            return policy.evaluate(rule, input_json)
        except agentfactory_engine.PolicyError as error:
            worked = time.thread_time() - before
            if TOO_LONG not in str(error) or worked > EVALUATION_TIME.total_seconds() / 2:
                raise
    return policy.evaluate(rule, input_json)


def inspect_rego(files: Mapping[str, str], data: Mapping[str, Any]) -> RegoReport:
    """Read the modules (path to text) and judge everything that they use, and the numbers in the data."""
    uses: dict[str, list[PolicyUse]] = {}
    problems: list[RegoProblem] = []
    for path, source in files.items():
        try:
            uses[path] = agentfactory_engine.inspect_policy(path, source)
        except agentfactory_engine.PolicyError as error:
            problems.append(_unreadable(path, str(error)))
    is_pure = not problems and all(use.name not in IMPURE for used in uses.values() for use in used)
    defined = {use.name for used in uses.values() for use in used if use.kind == "function"}
    for path, used in uses.items():
        problems.extend(_judged(path, used, defined))
    problems.extend(_inexact(data, "data"))
    problems.sort(key=lambda problem: (problem.path, problem.line, problem.column))
    return RegoReport(problems=tuple(problems[:MAX_PROBLEMS]), is_pure=is_pure)


def _unreadable(path: str, message: str) -> RegoProblem:
    found = _POSITION.search(message)
    reason = message.strip().splitlines()[-1].removeprefix("error: ")
    return RegoProblem(
        path=path,
        line=int(found["line"]) if found else 0,
        column=int(found["column"]) if found else 0,
        construct="syntax",
        message=f"{reason}; if it is Rego, {_ELSEWHERE}",
    )


def _judged(path: str, uses: Iterable[PolicyUse], defined: set[str]) -> Iterator[RegoProblem]:
    uses = list(uses)
    # The last name of an import is what its functions are called by; those by an `as` name are not found.
    imported = {use.name.rsplit(".", 1)[-1] for use in uses if use.kind == "import"}
    for use in uses:
        message = _objection(use, defined, imported)
        if message is not None:
            yield RegoProblem(
                path=path, line=use.line, column=use.column, construct=use.name[:80], message=message
            )


def _objection(use: PolicyUse, defined: set[str], imported: set[str]) -> str | None:
    if use.kind == "call":
        return _call_objection(use, defined, imported)
    if use.kind == "stand-in" and use.name in REFUSED:
        return f"{use.name} is refused by the embedded engine: {REFUSED[use.name]}{_ELSEWHERE}"
    if use.kind == "function" and (use.name in SAME or use.name in REFUSED):
        return f"{use.name} is the name of a built-in: choose another one"
    differs = {
        "import": use.name in FORBIDDEN_IMPORTS,
        "number": not _is_exact(use.name),
        "membership": True,
        "operator": True,
        "head": True,
    }
    return _DIFFERS[use.kind].format(use.name[:80]) + _ELSEWHERE if differs.get(use.kind) else None


def _call_objection(use: PolicyUse, defined: set[str], imported: set[str]) -> str | None:
    name = use.name[:80]
    if use.name in REFUSED:
        return f"{name} is refused by the embedded engine: {REFUSED[use.name]}{_ELSEWHERE}"
    if use.name in SAME:
        if use.name in _GUARDED and use.arguments != _GUARDED[use.name]:
            return f"{name} takes {_GUARDED[use.name]} arguments here: write `x := {name}(…)`"
        return None
    root = use.name.split(".", 1)[0]
    if use.name in defined or root == "data" or root in imported:
        return None
    return f"{name} is neither a function of the bundle nor a built-in of the embedded engine{_ELSEWHERE}"


def _is_exact(text: str) -> bool:
    # The length first: int() of a long text takes the square of it.
    is_short = len(text) <= len(str(-MAX_SAFE_INTEGER))
    return is_short and text.lstrip("-").isdigit() and abs(int(text)) <= MAX_SAFE_INTEGER


def _inexact(value: Any, path: str) -> Iterator[RegoProblem]:
    if isinstance(value, float):
        yield RegoProblem(
            path=path,
            line=0,
            column=0,
            construct=repr(value),
            message=_DIFFERS["number"].format(repr(value)) + _ELSEWHERE,
        )
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _inexact(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _inexact(item, f"{path}[{index}]")
