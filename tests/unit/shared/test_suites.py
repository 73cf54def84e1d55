"""Third-party vectors through the product's own verify functions. The files are not ours and not copied here."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared import merkle
from shared.errors import KeyFormatError, ProofInvalidError, SignatureInvalidError
from shared.signatures import PublicKey

ROOT = Path(os.environ.get("AF_SUITES_DIR") or Path(__file__).parents[4] / "shared" / "suites")
REQUIRED = os.environ.get("AF_REQUIRE_SUITES") == "1"
RSA_FILE = ROOT / "rsa" / "rsa_signature_2048_sha256_test.json"
MERKLE_FOLDER = ROOT / "merkle" / "testdata"

ANY_ODD_EXPONENT = frozenset({3, 65537})
"""Two groups of the RSA file have exponent 3: as trust roots of ours they are refused, as arithmetic they count."""

ACCEPTABLE_IS_REFUSED = (
    "the one 'acceptable' vector (tcId 8) omits the NULL of the DigestInfo: RFC 8017 knows one encoding only"
)


@pytest.fixture(autouse=True)
def suites_are_there() -> None:
    if RSA_FILE.is_file() and MERKLE_FOLDER.is_dir():
        return
    if REQUIRED:
        pytest.fail(f"AF_REQUIRE_SUITES=1 and there are no suites in {ROOT}")
    pytest.skip(f"no suites in {ROOT}: set AF_SUITES_DIR to their folder")


def rsa_cases() -> Iterator[Any]:
    document = json.loads(RSA_FILE.read_bytes()) if RSA_FILE.is_file() else {"testGroups": []}
    for group in document["testGroups"]:
        for case in group["tests"]:
            yield pytest.param(group, case, id=f"tc{case['tcId']}-{case['result']}")


def verifies(key: PublicKey, case: dict[str, Any]) -> bool:
    try:
        key.verify(bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"]))
    except SignatureInvalidError:
        return False
    return True


@pytest.mark.parametrize(("group", "case"), list(rsa_cases()))
def test_rsa_signature_vector(group, case):
    key = PublicKey.from_spki_der(bytes.fromhex(group["publicKeyDer"]), rsa_exponents=ANY_ODD_EXPONENT)
    assert key == PublicKey.from_pem(group["publicKeyPem"].encode(), rsa_exponents=ANY_ODD_EXPONENT)
    expected = {"valid": True, "invalid": False, "acceptable": False}[case["result"]]
    assert verifies(key, case) is expected, case["comment"]


def test_rsa_suite_is_whole():
    document = json.loads(RSA_FILE.read_bytes())
    acceptable = [
        case["tcId"]
        for group in document["testGroups"]
        for case in group["tests"]
        if case["result"] == "acceptable"
    ]
    assert document["numberOfTests"] == len(list(rsa_cases())) == 259
    assert acceptable == [8], ACCEPTABLE_IS_REFUSED


def test_small_exponent_of_the_suite_is_no_trust_root():
    small = [g for g in json.loads(RSA_FILE.read_bytes())["testGroups"] if g["keyJwk"]["e"] == "Aw"]
    assert len(small) == 2
    for group in small:
        with pytest.raises(KeyFormatError, match="exponent 3"):
            PublicKey.from_spki_der(bytes.fromhex(group["publicKeyDer"]))


def merkle_cases() -> Iterator[Any]:
    for path in sorted(MERKLE_FOLDER.rglob("*.json")):
        name = path.relative_to(MERKLE_FOLDER)
        yield pytest.param(name.parts[0], json.loads(path.read_bytes()), id=str(name.with_suffix("")))


def decoded(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def check_proof(kind: str, case: dict[str, Any]) -> None:
    proof = [decoded(node) for node in case["proof"] or []]
    match kind:
        case "inclusion":
            merkle.verify_inclusion(
                leaf=decoded(case["leafHash"]),
                index=case["leafIdx"],
                size=case["treeSize"],
                path=proof,
                root=decoded(case["root"]),
            )
        case "consistency":
            merkle.verify_consistency(
                first_size=case["size1"],
                second_size=case["size2"],
                proof=proof,
                first_root=decoded(case["root1"]),
                second_root=decoded(case["root2"]),
            )
        case "subtreeinclusion":
            merkle.verify_subtree_inclusion(
                leaf=decoded(case["leafHash"]),
                index=case["leafIdx"],
                start=case["start"],
                end=case["end"],
                path=proof,
                root=decoded(case["root"]),
            )
        case "subtreeconsistency":
            merkle.verify_subtree_consistency(
                start=case["start"],
                end=case["end"],
                size=case["size"],
                proof=proof,
                subtree_root=decoded(case["root1"]),
                root=decoded(case["root2"]),
            )
        case _:
            pytest.fail(f"the suite has a kind of proof that is not run: {kind}")


@pytest.mark.parametrize(("kind", "case"), list(merkle_cases()))
def test_merkle_proof_vector(kind, case):
    if case["wantErr"]:
        with pytest.raises(ProofInvalidError):
            check_proof(kind, case)
    else:
        check_proof(kind, case)


def test_merkle_suite_is_whole():
    kinds = [case.values[0] for case in merkle_cases()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "inclusion": 98,
        "consistency": 98,
        "subtreeinclusion": 204,
        "subtreeconsistency": 118,
    }
