"""OPA's own evaluation cases, read from the Go module they ship in and answered as the embedded engine would."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import agentfactory_engine
import pytest
import yaml

from shared.rego import inspect_rego

OPA_MODULE: Final = "github.com/open-policy-agent/opa@v1.22.2"
CASES_IN_MODULE: Final = "v1/test/cases/testdata/v1"
CASES: Final = 2400
TIMEOUT_MS: Final = 5_000
DOWNLOAD_SECONDS: Final = 300


class Verdict(StrEnum):
    """What became of a case."""

    SAME = "same"
    REFUSED_AT_UPLOAD = "refused at upload"
    REFUSED_AT_EVALUATION = "refused at evaluation"
    DIFFERS = "differs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    case: dict[str, Any]
    verdict: Verdict
    why: str

    @property
    def name(self) -> str:
        return f"{self.case['file']}: {self.case['note']}"


class _Loader(yaml.CSafeLoader):
    """As OPA reads YAML: exponents without a dot, and neither dates nor `on` and `yes`."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rsplit(":", 1)[1] not in {"timestamp", "float", "bool"}
    ]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$"), list("-+.0123456789")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|false)$"), list("tf"))


def cases_folder() -> Path:
    """Return the folder of the cases; the module is downloaded where it is not."""
    if shutil.which("go") is None:
        missing("no go to find OPA's cases with")
    cache = subprocess.run(
        ["go", "env", "GOMODCACHE"], capture_output=True, text=True, check=True
    ).stdout.strip()
    folder = Path(cache) / OPA_MODULE / CASES_IN_MODULE
    if not folder.is_dir():
        command = ["go", "mod", "download", OPA_MODULE]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_SECONDS)
        if done.returncode != 0:
            missing(f"go cannot download {OPA_MODULE}")
    return folder


def missing(what: str) -> None:
    """Skip, or fail where nothing may be left out."""
    if os.environ.get("AF_REQUIRE_SUITES"):
        pytest.fail(what)
    pytest.skip(what)


def read_cases(folder: Path) -> list[dict[str, Any]]:
    cases = []
    for path in sorted(folder.rglob("*.yaml")):
        document = yaml.load(path.read_text(), _Loader) or {}
        cases += [{**case, "file": str(path.relative_to(folder))} for case in document.get("cases") or []]
    return cases


def run_case(case: dict[str, Any]) -> Result:
    """Load and evaluate as production does: what upload refuses is not evaluated, and errors are never answers."""
    files = {f"test-{index}.rego": source for index, source in enumerate(case.get("modules") or [])}
    query = (
        case["query"]
        if case.get("input_term") is None
        else f"{case['query']} with input as {case['input_term']}"
    )
    probe = {"query.rego": f"package query_of_the_case\n\nasked if {{ {query} }}\n"}
    # The cases mean to hold fractions and large numbers in their data; they are judged by their answers.
    report = inspect_rego({**files, **probe}, {})
    if report.problems:
        return Result(case=case, verdict=Verdict.REFUSED_AT_UPLOAD, why=report.problems[0].message)
    try:
        policy = agentfactory_engine.Policy(
            list(files.items()), json.dumps(case.get("data") or {}), timeout_ms=TIMEOUT_MS
        )
    except agentfactory_engine.PolicyError as error:
        return Result(case=case, verdict=Verdict.REFUSED_AT_UPLOAD, why=last_line(error))
    wants_error = "want_error" in case or "want_error_code" in case
    try:
        got = json.loads(policy.query(query, json.dumps(case["input"]) if "input" in case else None))
    except agentfactory_engine.PolicyError as error:
        verdict = Verdict.SAME if wants_error else Verdict.REFUSED_AT_EVALUATION
        return Result(case=case, verdict=verdict, why=last_line(error))
    same = not wants_error and same_answers(case, got)
    return Result(case=case, verdict=Verdict.SAME if same else Verdict.DIFFERS, why=json.dumps(got))


def last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].removeprefix("error: ")


def same_answers(case: dict[str, Any], got: list[dict[str, Any]]) -> bool:
    want = case["want_result"]
    if case.get("ignore_generated_vars"):
        got = [{name: value for name, value in row.items() if not name.startswith("__localq")} for row in got]
    if case.get("sort_bindings"):
        got, want = [with_sorted_lists(row) for row in got], [with_sorted_lists(row) for row in want]
    return {comparable(row) for row in got} == {comparable(row) for row in want}


def with_sorted_lists(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: sorted(value, key=lambda item: json.dumps(item, sort_keys=True))
        if isinstance(value, list)
        else value
        for name, value in row.items()
    }


def comparable(value: Any) -> Any:
    """A value that equals only its like: true is not 1, but 1 is 1.0."""
    if isinstance(value, dict):
        return ("object", frozenset((key, comparable(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("array", tuple(map(comparable, value)))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return ("number", value)
    return (type(value).__name__, value)


def listed(result: Result) -> str:
    """One line of the list of what is not answered."""
    return f"{result.verdict}\t{result.name}\t{result.why}"


def main() -> None:
    """Write the list anew: `python -m tests.contract.policy.opa_cases > tests/contract/policy/opa_cases.txt`."""
    for result in map(run_case, read_cases(cases_folder())):
        if result.verdict is not Verdict.SAME:
            print(listed(result))  # noqa: T201 - its purpose


if __name__ == "__main__":
    main()
