"""The signed form of policy bundles: what comes back, and every way in which it must not."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.canonical import canonical_json
from shared.dsse import KEYSET_TYPE, POLICY_TYPE, sign_envelope
from shared.errors import (
    AgentFactoryError,
    InvalidInputError,
    MalformedError,
    PackageAlteredError,
    PackageTooLargeError,
    PackageTruncatedError,
    PayloadTypeError,
    SignatureInvalidError,
    UnknownFieldError,
    UnknownKeyError,
    UnsupportedVersionError,
)
from shared.policy_bundle import (
    MAX_BUNDLE_BYTES,
    MAX_FILES,
    check_files,
    data_of,
    decode_manifest,
    encode_manifest,
    make_policy,
    own_tests,
    rules_of,
    sign_policy,
    verify_policy,
)
from shared.policy_folder import read_envelope, read_folder, write_envelope
from tests.fixtures.keys import ed25519_key, rsa_key, signer, trusting

KEY = ed25519_key("policy")
FILES = {
    "base.rego": b"package agentfactory\n",
    "lib/more.rego": b"package lib\n",
    "base_test.rego": b"package agentfactory_test\n",
    "data.json": b'{"b": 1, "a": [true]}',
}


def made(**changes):
    return make_policy(**{"name": "base", "version": 3, "comment": "first", "files": FILES} | changes)


async def signed(policy=None, key=KEY) -> bytes:
    return await sign_policy(policy or made(), [signer(key)])


async def signed_document(change) -> bytes:
    document = json.loads(made().manifest_bytes)
    change(document)
    return await sign_envelope(POLICY_TYPE, canonical_json(document), [signer(KEY)])


def verify(envelope, files=FILES, key=KEY):
    return verify_policy(envelope, files, keys=trusting(key))


async def test_a_signed_bundle_comes_back_whole():
    verified = verify(await signed())
    assert verified.manifest == made().manifest
    assert verified.digest == made().digest
    assert verified.key_id == KEY.key_id
    assert verified.files == FILES
    assert set(rules_of(FILES)) == {"base.rego", "lib/more.rego"}
    assert set(own_tests(FILES)) == {"base_test.rego"}
    assert data_of(FILES) == '{"a":[true],"b":1}'
    assert data_of({}) == "{}"


async def test_an_rsa_key_may_sign_too():
    key = rsa_key("policy")
    assert verify(await signed(key=key), key=key).key_id == key.key_id


@pytest.mark.parametrize(
    ("files", "error"),
    [
        (FILES | {"base.rego": b"package agentfactory\n "}, PackageAlteredError),
        (FILES | {"extra.rego": b"package x"}, PackageAlteredError),
        ({path: text for path, text in FILES.items() if path != "data.json"}, PackageTruncatedError),
    ],
)
async def test_attack_other_files_than_were_signed(files, error):
    with pytest.raises(error):
        verify(await signed(), files)


async def test_attack_another_key_or_another_type():
    with pytest.raises(UnknownKeyError):
        verify(await signed(key=ed25519_key("other")))
    other = await sign_envelope(KEYSET_TYPE, made().manifest_bytes, [signer(KEY)])
    with pytest.raises(PayloadTypeError):
        verify(other)


async def test_attack_another_payload_under_the_same_signature():
    first = json.loads(await signed())
    second = json.loads(await signed(made(version=4)))
    first["payload"] = second["payload"]
    with pytest.raises(SignatureInvalidError):
        verify(canonical_json(first))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda document: document.update(more=1), UnknownFieldError),
        (lambda document: document["files"][0].update(more=1), UnknownFieldError),
        (lambda document: document.update(type="agentfactory.policy.v2"), UnsupportedVersionError),
        (lambda document: document.update(version=0), MalformedError),
        (lambda document: document.update(name="Base"), MalformedError),
        (lambda document: document.update(files=document["files"][::-1]), MalformedError),
        (lambda document: document.update(files=document["files"] * 2), MalformedError),
        (lambda document: document.pop("files"), MalformedError),
    ],
)
async def test_signed_manifests_that_break_the_format_are_refused(change, error):
    with pytest.raises(error):
        verify(await signed_document(change))


@pytest.mark.parametrize(
    "path",
    [
        "../a.rego",
        "/a.rego",
        "a/../b.rego",
        ".hidden.rego",
        "a//b.rego",
        "a\\b.rego",
        "a b.rego",
        "a\n.rego",
        "lib/data.json",
        "a.txt",
        "",
        "x" * 200 + ".rego",
    ],
)
def test_attack_paths_that_leave_the_folder_or_are_no_policy(path):
    with pytest.raises(MalformedError):
        check_files({"base.rego": b"package a", path: b"{}"})


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({f"a{n}.rego": b"package a" for n in range(MAX_FILES + 1)}, PackageTooLargeError),
        ({"a.rego": b"#" * (MAX_BUNDLE_BYTES + 1)}, PackageTooLargeError),
        ({"a.rego": b"\xff"}, MalformedError),
        ({"a.rego": b"package a", "data.json": b"[]"}, MalformedError),
        ({"a.rego": b"package a", "data.json": b'{"a":1,"a":2}'}, MalformedError),
        ({"a.rego": b"package a", "A.rego": b"package a"}, MalformedError),
        ({"a.rego": b"package a", "a.rego/b.rego": b"package a"}, MalformedError),
        ({"a_test.rego": b"package a"}, PackageTruncatedError),
        ({}, PackageTruncatedError),
    ],
)
def test_what_can_be_no_bundle_is_refused(files, error):
    with pytest.raises(error):
        check_files(files)


@pytest.mark.parametrize(
    "changes",
    [{"name": "No"}, {"version": 0}, {"version": 2**31}, {"comment": "a\nb"}, {"comment": "x" * 2000}],
)
def test_names_versions_and_comments_are_bounded(changes):
    with pytest.raises(InvalidInputError):
        made(**changes)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"\A[a-z0-9_]{1,8}(/[a-z0-9_]{1,8}){0,3}\.rego\Z"),
        st.text(max_size=64),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 2**31 - 1),
    st.text(st.characters(categories=["L", "N"]), max_size=64),
)
def test_every_manifest_comes_back_and_no_two_share_an_address(texts, version, comment):
    files = {path: text.encode("utf-8", "replace") for path, text in texts.items()} | {"zz.rego": b""}
    try:
        policy = make_policy(name="p", version=version, files=files, comment=comment)
    except AgentFactoryError:
        return
    assert decode_manifest(policy.manifest_bytes) == policy.manifest
    other = encode_manifest(replace(policy.manifest, version=version % (2**31 - 1) + 1))
    assert other != policy.manifest_bytes


async def test_a_folder_is_read_as_it_was_signed(tmp_path):
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    (tmp_path / "README.md").write_text("not a policy")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.rego").write_text("package hidden")
    assert read_folder(tmp_path) == FILES
    write_envelope(tmp_path, await signed())
    assert verify(read_envelope(tmp_path), read_folder(tmp_path)).digest == made().digest


def test_attack_a_folder_with_a_link_to_a_file_of_this_machine(tmp_path):
    (tmp_path / "a.rego").symlink_to("/etc/passwd")
    with pytest.raises(AgentFactoryError):
        read_folder(tmp_path)
