"""Looks the locked packages up in vulnerability services: `python -m tests.tools.vulnerabilities`.

Exit codes: 0 looked up and clean, 1 something was found (or could not be looked up without a reason in pyproject.toml),
4 not looked up, because no service answers here. That is never a 0: who needs the answer treats 4 as a failure
(`make audit`); `make check`, which has to work without internet, says it aloud.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from tests.tools.locked import ROOT, RUST, Locked, python_packages, settings

CLEAN, FOUND, NOT_AUDITED = 0, 1, 4
CONTROL: Final = "https://pypi.org/pypi/jinja2/2.11.0/json"
"""A release with published vulnerabilities. A mirror that knows none of it would call everything clean."""
TIMEOUT_SECONDS: Final = 5
LONGEST_SECONDS: Final = 120
NO_DATABASE: Final = "couldn't fetch advisory database"


def answers(url: str = CONTROL) -> str:
    """Return "" when the service knows the vulnerabilities of the control, else why it is no help."""
    try:
        answer = httpx.get(url, timeout=TIMEOUT_SECONDS, follow_redirects=True)
        known = answer.json().get("vulnerabilities") if answer.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, ValueError) as error:
        return f"pypi.org does not answer ({type(error).__name__})"
    return (
        ""
        if known
        else f"pypi.org knows nothing of a release with known vulnerabilities (HTTP {answer.status_code})"
    )


def audit_python() -> tuple[int, list[str]]:
    """Return the exit code and what there is to say about the packages of uv.lock."""
    away = answers()
    packages = [one for one in python_packages() if not one.ours]
    if away:
        return NOT_AUDITED, [f"not audited: {len(packages)} Python packages: {away}"]
    rules = settings("audit")
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, names in enumerate(_files(packages)):
            requirements = Path(folder) / f"{number}.txt"
            requirements.write_text("".join(f"{one.name}=={one.version}\n" for one in names))
            try:
                found += _pip_audit(requirements, rules["accepted"])
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                return NOT_AUDITED, [f"not audited: {len(packages)} Python packages: {error}"]
    return judge(found, rules["not_audited"])


def judge(found: Sequence[dict[str, Any]], excused: dict[str, str]) -> tuple[int, list[str]]:
    """Return the exit code for pip-audit's findings; `excused` are names that no service can know, with the reason."""
    bad = [
        f"{one['name']} {one['version']}: {bug['id']}, fixed in {', '.join(bug['fix_versions']) or 'no version'}"
        for one in found
        for bug in one.get("vulns", [])
    ]
    skipped = {one["name"]: one["skip_reason"] for one in found if "skip_reason" in one}
    bad += [f"{name}: not audited: {why}" for name, why in skipped.items() if name not in excused]
    said = [
        f"not audited, as pyproject.toml says: {name}: {excused[name]}" for name in skipped if name in excused
    ]
    counted = f"{len(found) - len(skipped)} Python packages looked up, {len(skipped)} not"
    return (FOUND if bad else CLEAN), [*bad, *said, counted]


def _files(packages: Sequence[Locked]) -> Iterator[list[Locked]]:
    """Put each version of a name into a file of its own: pip-audit takes a name once."""
    seen: list[list[Locked]] = []
    for one in packages:
        room = next((file for file in seen if all(one.name != other.name for other in file)), None)
        if room is None:
            seen.append([one])
        else:
            room.append(one)
    yield from seen


def _pip_audit(requirements: Path, accepted: dict[str, str]) -> list[dict[str, Any]]:
    """Run pip-audit.

    Raises:
        RuntimeError: It ended without an answer: what it printed.
    """
    arguments = [
        *(sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json"),
        *("--progress-spinner", "off", "--timeout", str(TIMEOUT_SECONDS), "--requirement", str(requirements)),
        *(word for name in accepted for word in ("--ignore-vuln", name)),
    ]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=LONGEST_SECONDS)
    try:
        answer: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        raise RuntimeError(f"pip-audit did not answer: {done.stderr.strip()[-500:]}") from None
    return answer


def audit_rust() -> tuple[int, list[str]]:
    """Return the exit code and what there is to say about the crates, with cargo-audit where it is installed."""
    if subprocess.run(["cargo", "audit", "--version"], check=False, capture_output=True).returncode:
        return NOT_AUDITED, [
            "not audited: Rust crates: cargo-audit is not installed (cargo install cargo-audit)"
        ]
    code, said = CLEAN, []
    for lock in RUST:
        arguments = ["cargo", "audit", "--quiet", "--file", str(lock)]
        done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=LONGEST_SECONDS)
        if NO_DATABASE in done.stderr:
            return NOT_AUDITED, ["not audited: Rust crates: the database of RustSec cannot be fetched"]
        name = lock.relative_to(ROOT)
        said += [done.stdout + done.stderr] if done.returncode else [f"{name}: no known vulnerability"]
        code = max(code, min(done.returncode, FOUND))
    return code, said


def main() -> int:
    results = [audit_python(), audit_rust()]
    for _, said in results:
        print("\n".join(said))
    codes = {code for code, _ in results}
    return FOUND if FOUND in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
