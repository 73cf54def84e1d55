"""Tries a bundle without putting it in force: its own tests, and probes of every question."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from control_plane.policy.answers import UNDECIDED, Answer, ask
from control_plane.policy.bundles import with_tests
from control_plane.policy.domain import (
    AuditInput,
    NodeInput,
    PolicyBundle,
    PolicyInput,
    Question,
    Subject,
)
from control_plane.policy.ports import PolicyEngine, PolicyEngines
from shared.canonical import canonical_json
from shared.digests import Digest, sha256_digest
from shared.errors import PolicyInvalidError, PolicyUndecidedError
from shared.ids import TenantId
from shared.limits import RequestedLimits
from shared.manifest import Capabilities, HttpCapability
from shared.policy_bundle import data_of, own_tests, rules_of

MAX_TESTS: Final = 512
"""Rules `test_…` of one bundle."""

# Comments and raw strings, in which a line may look like a rule.
_NOISE: Final = re.compile(r"`[^`]*`|\"(?:[^\"\\\n]|\\.)*\"|#[^\n]*")
_PACKAGE: Final = re.compile(
    r"^\s*package\s+([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)", re.MULTILINE
)
_TEST: Final = re.compile(r"^\s*(test_[A-Za-z0-9_]*)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One test or probe."""

    name: str
    message: str = ""
    """Why it failed; empty: it passed."""

    @property
    def passed(self) -> bool:
        """Whether it did."""
        return not self.message


async def load_rules(engines: PolicyEngines, files: Mapping[str, bytes], digest: Digest) -> PolicyEngine:
    """Return an engine of what decides in these files.

    Raises:
        PolicyInvalidError: The engine does not take it.
        UnavailableError: The engine is away.
    """
    rules = PolicyBundle(files=rules_of(files), data_json=data_of(files), digest=digest)
    return await engines.load(rules)


async def load_all(engines: PolicyEngines, files: Mapping[str, bytes]) -> None:
    """Let a bundle pass that the engine takes, its tests too.

    Raises:
        PolicyInvalidError: The engine does not take it.
    """
    await load_rules(engines, files, sha256_digest(b"rules"))
    await engines.load(with_tests(files, sha256_digest(b"tests")))


async def try_bundle(
    engines: PolicyEngines, files: Mapping[str, bytes], engine: PolicyEngine
) -> tuple[TrialResult, ...]:
    """Run a bundle's own tests, then the probes; `engine` is the one of its rules.

    Raises:
        PolicyInvalidError: Its tests are not Rego, or there are too many.
        UnavailableError: The engine is away.
    """
    return (*await run_tests(engines, files), *await run_probes(engine))


async def run_tests(engines: PolicyEngines, files: Mapping[str, bytes]) -> tuple[TrialResult, ...]:
    """Run every rule ``test_…`` of the files ``*_test.rego``; one that is not true has failed.

    None is run where the engines are servers that were not given the tests: `opa test` runs them before.
    """
    if not engines.takes_anything:
        return ()
    names = [name for path, text in own_tests(files).items() for name in names_of_tests(path, text)]
    if not names:
        return ()
    if len(names) > MAX_TESTS:
        raise PolicyInvalidError(f"the policy has {len(names)} tests, the bound is {MAX_TESTS}")
    digest = sha256_digest(canonical_json({path: sha256_digest(text) for path, text in files.items()}))
    engine = await engines.load(with_tests(files, digest))
    return tuple([await _run_test(engine, name) for name in dict.fromkeys(names)])


def names_of_tests(path: str, text: str) -> list[str]:
    """Return the full names of a file's tests.

    Raises:
        PolicyInvalidError: Its package has no plain name.
    """
    plain = _NOISE.sub(lambda found: '""' if found[0][0] != "#" else "", text)
    package = _PACKAGE.search(plain)
    if package is None:
        raise PolicyInvalidError(f"{path}: no package with a plain name is declared")
    return [f"data.{package[1]}.{name}" for name in _TEST.findall(plain)]


async def run_probes(engine: PolicyEngine) -> tuple[TrialResult, ...]:
    """Ask every question once as it comes and once empty: answered in the right form, and denied."""
    results = []
    for question in Question:
        sample = canonical_json(SAMPLES[question].document(question)).decode()
        answer = await ask(engine, question, sample)
        results.append(
            TrialResult(name=f"probe {question}: a sample is answered", message=_undecided(answer))
        )
        empty = await ask(engine, question, "{}")
        message = "it is allowed" if empty.allowed else ""
        results.append(TrialResult(name=f"probe {question}: an empty input is denied", message=message))
        await asyncio.sleep(0)
    return tuple(results)


def require_passed(results: Sequence[TrialResult]) -> None:
    """Let a bundle pass all of whose tests and probes did.

    Raises:
        PolicyInvalidError: One failed; it names the first ones.
    """
    failed = [f"{result.name}: {result.message}" for result in results if not result.passed]
    if failed:
        shown = "; ".join(failed[:8])
        raise PolicyInvalidError(
            f"{len(failed)} of {len(results)} tests and probes fail: {shown}",
            hint="see all of them with 'agentfactory policy test'",
        )


async def _run_test(engine: PolicyEngine, name: str) -> TrialResult:
    await asyncio.sleep(0)
    try:
        value = json.loads((await engine.evaluate(name, "{}")).value_json)
    except PolicyUndecidedError as error:
        return TrialResult(name=name, message=f"not true: {error}")
    return TrialResult(name=name, message="" if value is True else "not true")


def _undecided(answer: Answer) -> str:
    return "" if answer.is_valid else f"{UNDECIDED}: {answer.problem}"


_SUBJECT: Final = Subject(
    identity="spiffe://probe/caller/probe", tenant_id=TenantId("default"), roles=frozenset({"caller"})
)
_TEMPLATE: Final = PolicyInput(
    subject=_SUBJECT,
    template_name="probe",
    template_version="1.0.0",
    template_digest=sha256_digest(b"probe"),
    capabilities=Capabilities(http=(HttpCapability(method="GET", url="https://probe.example/"),)),
    limits=RequestedLimits(),
    publisher_key_id=sha256_digest(b"publisher"),
    agent="probe",
)
_NODE: Final = NodeInput(
    subject=_SUBJECT,
    node_id="nod_00000000-0000-7000-8000-000000000000",
    stage="session",
    module_digest=sha256_digest(b"module"),
)
SAMPLES: Final[Mapping[Question, PolicyInput | NodeInput | AuditInput]] = {
    Question.PUBLISH_TEMPLATE: _TEMPLATE,
    Question.CREATE_AGENT: _TEMPLATE,
    Question.EXECUTE: _TEMPLATE,
    Question.GRANT_CAPABILITIES: _TEMPLATE,
    Question.PULL_ARTIFACT: _NODE,
    Question.ADMIT_NODE: _NODE,
    Question.READ_AUDIT: AuditInput(subject=_SUBJECT, method="ListAuditEntries"),
}
"""One input of each question, in the form that it has in earnest."""
