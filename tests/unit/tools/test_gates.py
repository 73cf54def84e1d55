"""The gates of `make check`: each is seen to fail."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.tools import committed_secrets, docs_site, licences, reference, sbom, vulnerabilities
from tests.tools.locked import ROOT, RUST, crates, python_packages
from tests.tools.stages import UV

ALLOWED = {"MIT", "Apache-2.0", "Unicode-3.0"}
# In pieces, so that the gate does not find them here.
GITHUB_TOKEN = "ghp_" + "a1B2" * 9
PEM = "-----BEGIN EC " + "PRIVATE KEY-----\n{}\n-----END EC " + "PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MIT/Apache-2.0", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR GPL-2.0-only) AND Unicode-3.0", True),
        ("(GPL-2.0-only OR AGPL-3.0-only) AND MIT", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("mit-like", False),
    ],
)
def test_a_licence_has_to_be_satisfied_by_what_is_allowed(expression, allowed):
    assert licences.allows(expression, ALLOWED) is allowed


@pytest.mark.parametrize("expression", ["", "MIT OR", "(MIT", "MIT)", "MIT MIT", "AND MIT"])
def test_what_is_no_licence_expression_is_refused(expression):
    with pytest.raises(ValueError, match="licence expression"):
        licences.allows(expression, ALLOWED)


def test_licences_that_are_not_allowed_or_not_named_are_refused_and_so_are_idle_exceptions():
    found = {"good": "MIT", "bad": "AGPL-3.0-only", "silent": "", "excused": "MPL-2.0"}
    lines = list(licences.refused(found, ALLOWED, {"excused": "tests only", "gone": "was once needed"}))
    assert [line.partition(":")[0] for line in lines] == ["bad", "silent", "gone"]


def test_metadata_says_its_licence_in_one_of_three_ways():
    assert licences.licence_of(metadata(("License-Expression", "MIT"), ("License", "GPL"))) == "MIT"
    classified = metadata(("License", "Dual"), *(("Classifier", f"License :: OSI Approved :: {name}") for name in
                                                 ("MIT License", "BSD License")))  # fmt: skip
    assert licences.licence_of(classified) == "BSD-3-Clause AND MIT"
    assert licences.licence_of(metadata(("Classifier", "License :: OSI Approved :: Rare License"))) == ""
    assert licences.licence_of(metadata(("License", "BSD-3-Clause"))) == "BSD-3-Clause"
    assert licences.licence_of(metadata(("License", "UNKNOWN"))) == ""
    assert licences.licence_of(metadata(("License", "All rights reserved, ask us"))) == ""


def metadata(*lines: tuple[str, str]) -> Message:
    made = Message()
    for name, value in lines:
        made[name] = value
    return made


def test_a_committed_secret_is_found_and_not_printed(tmp_path: Path):
    (tmp_path / "config.py").write_text(f"first = 1\ntoken = '{GITHUB_TOKEN}'\n")
    (tmp_path / "key.pem").write_text(PEM.format("MHcCAQEEIOne" * 12))
    found = committed_secrets.scan(["config.py", "key.pem"], tmp_path)
    lines = list(committed_secrets.not_allowed(found, set()))
    assert [line.partition(": ")[0] for line in lines] == ["config.py:2", "key.pem:1"]
    assert GITHUB_TOKEN not in "".join(lines)


def test_another_key_in_an_allowed_file_is_found(tmp_path: Path):
    (tmp_path / "key.pem").write_text(PEM.format("MHcCAQEEIOne" * 12))
    allowed = {(name, digest) for name, digest, _ in committed_secrets.scan(["key.pem"], tmp_path)}
    (tmp_path / "key.pem").write_text(PEM.format("MHcCAQEEIOne" * 12) + PEM.format("MHcCAQEEIOther" * 12))
    found = committed_secrets.scan(["key.pem"], tmp_path)
    assert [line.partition(": ")[0] for line in committed_secrets.not_allowed(found, allowed)] == [
        "key.pem:4"
    ]
    assert len(list(committed_secrets.not_allowed([], allowed))) == 1


@contextmanager
def serving(status: int, body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join(timeout=10)


@pytest.mark.parametrize(
    ("status", "body", "helps"),
    [
        (200, b'{"vulnerabilities": [{"id": "PYSEC-2021-66"}]}', True),
        (200, b'{"vulnerabilities": []}', False),
        (200, b'{"info": {}}', False),
        (200, b"<html>sign in</html>", False),
        (404, b'{"vulnerabilities": [{"id": "x"}]}', False),
    ],
)
def test_a_service_that_knows_nothing_is_no_service(status, body, helps):
    with serving(status, body) as url:
        assert (vulnerabilities.answers(url) == "") is helps


def test_no_service_is_not_audited_and_never_clean(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vulnerabilities, "CONTROL", "http://127.0.0.1:9/")
    assert "does not answer" in vulnerabilities.answers("http://127.0.0.1:9/")
    code, said = vulnerabilities.audit_python()
    assert code == vulnerabilities.NOT_AUDITED
    assert said[0].startswith("not audited: ")


def test_a_vulnerability_and_an_unexplained_gap_are_found():
    bug = {"id": "PYSEC-1", "fix_versions": ["2.0"]}
    clean = {"name": "good", "version": "1", "vulns": []}
    gap = {"name": "ours", "skip_reason": "no such package"}
    assert vulnerabilities.judge([clean], {})[0] == vulnerabilities.CLEAN
    assert vulnerabilities.judge([clean, {**clean, "vulns": [bug]}], {})[0] == vulnerabilities.FOUND
    assert vulnerabilities.judge([clean, gap], {})[0] == vulnerabilities.FOUND
    code, said = vulnerabilities.judge([clean, gap], {"ours": "made here"})
    assert (code, said[0]) == (vulnerabilities.CLEAN, "not audited, as pyproject.toml says: ours: made here")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What goes into the images, made as their builder makes it."""
    to = tmp_path_factory.mktemp("sbom") / "sbom.json"
    command = [sys.executable, "-m", "tests.tools.sbom", UV, "--to", to]
    subprocess.run(command, check=True, cwd=ROOT, timeout=120, stdout=subprocess.PIPE)
    return json.loads(to.read_text())


def test_the_list_of_what_is_shipped_is_valid_and_has_every_package_and_crate(listed):
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(json.dumps(listed)) is None
    found = {one["purl"]: one for one in listed["components"] if "purl" in one}
    assert "pkg:pypi/grpcio" in {purl.partition("@")[0] for purl in found}
    assert "pkg:pypi/boto3" in {purl.partition("@")[0] for purl in found}, "of the image that makes backups"
    for crate in crates(RUST[0]):
        assert (f"pkg:cargo/{crate.name}@{crate.version}" in found) is not crate.ours
    assert not any("pytest" in purl for purl in found)


def test_the_engine_is_listed_with_the_checksum_that_its_registry_has(listed):
    wasmer = next(one for one in listed["components"] if one.get("purl", "").startswith("pkg:cargo/wasmer@"))
    lock = RUST[0].read_text()
    (said,) = wasmer["hashes"]
    assert f'name = "wasmer"\nversion = "{wasmer["version"]}"\n' in lock
    after = lock.partition(f'name = "wasmer"\nversion = "{wasmer["version"]}"\n')[2]
    assert f'checksum = "{said["content"]}"' in after.partition("[[package]]")[0]


def test_the_same_lock_files_make_the_same_list(listed):
    made_later = {**listed, "metadata": {**listed["metadata"], "timestamp": "2030-01-01T00:00:00Z"}}
    assert sbom.settled(made_later) == listed
    assert {one.name for one in python_packages() if one.ours} == {"agentfactory", "agentfactory-engine"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("# Title\n\n[here](#title), [there](other.md#more)\n", 0),
        ("[nowhere](gone.md)\n", 1),
        ("[no such place](other.md#less)\n", 1),
    ],
)
def test_a_link_that_leads_nowhere_fails_the_site(tmp_path: Path, text, code):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(text)
    (tmp_path / "docs" / "other.md").write_text("# Other\n\n## More\n\nAnd so on.\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nnav: [index.md]\n")
    assert docs_site.build(config, tmp_path / "site") == code


@pytest.mark.parametrize(
    ("html", "loads"),
    [
        ('<script src="https://cdn.example.test/x.js"></script>', True),
        ("<img alt='' src='//pictures.example.test/x.png'>", True),
        ('<link rel="stylesheet" href="https://fonts.example.test/css">', True),
        ('<script src="assets/x.js"></script><a href="https://example.test/">read</a>', False),
        ('<link rel="canonical" href="https://docs.example.test/">', False),
    ],
)
def test_what_a_page_would_load_from_another_host_is_found(tmp_path: Path, html, loads):
    (tmp_path / "index.html").write_text(html)
    assert bool(list(docs_site.loaded_from_elsewhere(tmp_path))) is loads


def test_the_reference_is_what_the_program_is():
    assert reference.drifted() == [], "run: make reference"
