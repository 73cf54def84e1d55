"""Signed policy bundles: which files one is made of, how it is signed and, above all, verified.

A bundle is Rego files, their own tests (``*_test.rego``) and at most one ``data.json``. Its manifest names
the SHA-256 of every file; the policy key of the keyset signs the manifest, and the manifest's digest is the
bundle's address: what decisions and orders name. Evaluates nothing and reads no folder.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from shared.canonical import JsonObject, canonical_json, parse_canonical, parse_strict
from shared.digests import Digest, sha256_digest
from shared.dsse import POLICY_TYPE, sign_envelope, verify_envelope
from shared.errors import (
    InvalidInputError,
    MalformedError,
    PackageAlteredError,
    PackageTooLargeError,
    PackageTruncatedError,
    UnsupportedVersionError,
)
from shared.fields import Fields
from shared.ids import KeyId
from shared.signatures import PublicKey, Signer

FORMAT: Final = "agentfactory.policy.v1"
DATA_FILE: Final = "data.json"
TEST_SUFFIX: Final = "_test.rego"

MAX_FILES: Final = 64
MAX_BUNDLE_BYTES: Final = 1024 * 1024
"""Of all files together."""
MAX_PATH_CHARS: Final = 128
MAX_COMMENT_CHARS: Final = 1024
MAX_MANIFEST_BYTES: Final = 64 * 1024
MAX_ENVELOPE_BYTES: Final = 128 * 1024
MAX_VERSION: Final = 2**31 - 1

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
# Every part begins with a letter, a digit or an underscore: no "..", no hidden file, no absolute path.
_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFile:
    """One file as the manifest names it."""

    path: str
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyManifest:
    """What is signed of a bundle."""

    name: str
    version: int
    """Of the installation's policy, from 1 on; only grows. 0 is what comes with the control plane."""
    comment: str = ""
    files: tuple[PolicyFile, ...]
    """By path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsignedPolicy:
    """A bundle about to be signed."""

    manifest: PolicyManifest
    manifest_bytes: bytes = field(repr=False)
    """Canonical JSON; what is signed."""
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def digest(self) -> Digest:
        """The bundle's address."""
        return sha256_digest(self.manifest_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedPolicy:
    """A bundle that passed every check: exactly what a holder of the policy key signed."""

    manifest: PolicyManifest
    digest: Digest
    """SHA-256 of the canonical manifest: the bundle's address."""
    key_id: KeyId
    envelope: bytes = field(repr=False)
    """As verified: these bytes are stored and passed on."""
    files: Mapping[str, bytes] = field(repr=False)


def make_policy(*, name: str, version: int, files: Mapping[str, bytes], comment: str = "") -> UnsignedPolicy:
    """Return the bundle of these files, to be signed.

    Raises:
        InvalidInputError: Name, version or comment is outside its bounds.
        MalformedError, PackageTooLargeError, PackageTruncatedError: As `check_files`.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(f"{name[:80]!r} is not a policy's name: [a-z][a-z0-9-]{{0,62}}")
    if not 1 <= version <= MAX_VERSION:
        raise InvalidInputError(f"version {version} is not from 1 to {MAX_VERSION}")
    if len(comment) > MAX_COMMENT_CHARS or (comment and not comment.isprintable()):
        raise InvalidInputError(f"the comment is not one line of at most {MAX_COMMENT_CHARS} characters")
    check_files(files)
    manifest = PolicyManifest(name=name, version=version, comment=comment, files=described(files))
    return UnsignedPolicy(manifest=manifest, manifest_bytes=encode_manifest(manifest), files=dict(files))


def described(files: Mapping[str, bytes]) -> tuple[PolicyFile, ...]:
    """Return the files as a manifest names them."""
    return tuple(
        PolicyFile(path=path, digest=sha256_digest(files[path]), size_bytes=len(files[path]))
        for path in sorted(files)
    )


def check_files(files: Mapping[str, bytes]) -> None:
    """Let files pass that can be a bundle. What they say is the engine's to judge.

    Raises:
        PackageTooLargeError: More than 64 files, or more than 1 MiB together.
        MalformedError: A path is not safe or has another ending, one file is in the way of another, text is
            not UTF-8, or data.json is not one strict JSON object.
        PackageTruncatedError: There is no Rego file beside the tests.
    """
    if len(files) > MAX_FILES:
        raise PackageTooLargeError(f"the policy has {len(files)} files, the bound is {MAX_FILES}")
    total = sum(map(len, files.values()))
    if total > MAX_BUNDLE_BYTES:
        raise PackageTooLargeError(f"the policy has {total} bytes, the bound is {MAX_BUNDLE_BYTES}")
    for path, content in files.items():
        _check_file(path, content)
    # Where cases are not told apart, or a file is another's folder, a folder could not hold the bundle.
    folded = sorted(path.lower() + "/" for path in files)
    for one, following in pairwise(folded):
        if following.startswith(one):
            raise MalformedError(
                f"the policy's files {one[:-1]!r} and {following[:-1]!r} are in each other's way"
            )
    if not rules_of(files):
        raise PackageTruncatedError("the policy has no .rego file beside its tests")


def rules_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the Rego files that decide, as text by path."""
    return {
        path: content.decode()
        for path, content in sorted(files.items())
        if path.endswith(".rego") and not path.endswith(TEST_SUFFIX)
    }


def own_tests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the Rego files that test, as text by path."""
    return {path: content.decode() for path, content in sorted(files.items()) if path.endswith(TEST_SUFFIX)}


def data_of(files: Mapping[str, bytes]) -> str:
    """Return what the rules find below ``data``, as canonical JSON; an empty object without a data.json."""
    if DATA_FILE not in files:
        return "{}"
    return canonical_json(parse_strict(files[DATA_FILE], max_bytes=MAX_BUNDLE_BYTES)).decode()


async def sign_policy(policy: UnsignedPolicy, signers: Sequence[Signer]) -> bytes:
    """Return the DSSE envelope over the manifest, and through it over every file.

    Raises:
        KeyUnavailableError: A signer's custodian does not answer.
    """
    return await sign_envelope(POLICY_TYPE, policy.manifest_bytes, signers)


def verify_policy(
    envelope: bytes, files: Mapping[str, bytes], *, keys: Mapping[KeyId, PublicKey]
) -> VerifiedPolicy:
    """Return the bundle if, and only if, every check passes; `keys` are those of purpose ``policy``.

    1. It is a DSSE envelope of at most 128 KiB over a policy.
    2. A policy key signed the exact manifest.
    3. The manifest is canonical, of this format, and without unknown fields.
    4. Every file that it names is here, with exactly the size and SHA-256 that it names.
    5. No other file is here.
    6. The files are within the bounds of `check_files`.

    Whether the version goes back, and whether an engine takes the rules, is the caller's to check.

    Raises:
        VerificationError: By its classes: MalformedError, UnsignedError, PayloadTypeError (check 1);
            UnknownKeyError, SignatureInvalidError (check 2); MalformedError, UnknownFieldError,
            UnsupportedVersionError (check 3); PackageTruncatedError (check 4); PackageAlteredError (check 4
            or 5); as `check_files` (check 6).
    """
    verified = verify_envelope(envelope, payload_type=POLICY_TYPE, keys=keys, max_bytes=MAX_ENVELOPE_BYTES)
    manifest = decode_manifest(verified.payload)
    named = {file.path: file for file in manifest.files}
    for path, file in named.items():
        if path not in files:
            raise PackageTruncatedError(f"check 4: policy file {path} is missing")
        if (len(files[path]), sha256_digest(files[path])) != (file.size_bytes, file.digest):
            raise PackageAlteredError(
                f"check 4: policy file {path} is not the one that was signed", hint="sign the policy again"
            )
    surplus = sorted(files.keys() - named.keys())
    if surplus:
        raise PackageAlteredError(
            f"check 5: policy file {surplus[0][:MAX_PATH_CHARS]!r} was not signed",
            hint="sign the policy again",
        )
    check_files(files)
    return VerifiedPolicy(
        manifest=manifest,
        digest=sha256_digest(verified.payload),
        key_id=min(verified.key_ids),
        envelope=envelope,
        files=dict(files),
    )


def encode_manifest(manifest: PolicyManifest) -> bytes:
    """Return the canonical JSON that is signed."""
    encoded: JsonObject = {
        "type": FORMAT,
        "name": manifest.name,
        "version": manifest.version,
        "files": [
            {"path": file.path, "digest": file.digest, "size_bytes": file.size_bytes}
            for file in manifest.files
        ],
    }
    if manifest.comment:
        encoded["comment"] = manifest.comment
    return canonical_json(encoded)


def decode_manifest(data: bytes) -> PolicyManifest:
    """Return the manifest in verified bytes.

    Raises:
        MalformedError: It is not canonical, breaks a rule of the format, or exceeds a bound.
        UnknownFieldError: It carries a field that is not known.
        UnsupportedVersionError: It is of another version of the format.
    """
    fields = Fields(parse_canonical(data, max_bytes=MAX_MANIFEST_BYTES), "policy manifest")
    found = fields.text("type")
    if found != FORMAT:
        raise UnsupportedVersionError(f"policy format is {found[:64]!r}, this build reads {FORMAT!r}")
    manifest = PolicyManifest(
        name=fields.pattern("name", _NAME, "a name such as base"),
        version=fields.integer("version", minimum=1, maximum=MAX_VERSION),
        comment=fields.text("comment", max_chars=MAX_COMMENT_CHARS) if fields.has("comment") else "",
        files=tuple(_decode_file(each) for each in fields.children("files", max_items=MAX_FILES)),
    )
    fields.end()
    paths = [file.path for file in manifest.files]
    if paths != sorted(set(paths)):
        raise MalformedError("policy manifest field 'files' is not ordered by path, each once")
    return manifest


def _decode_file(fields: Fields) -> PolicyFile:
    file = PolicyFile(
        path=fields.text("path", max_chars=MAX_PATH_CHARS),
        digest=fields.digest("digest"),
        size_bytes=fields.integer("size_bytes", maximum=MAX_BUNDLE_BYTES),
    )
    fields.end()
    return file


def _check_file(path: str, content: bytes) -> None:
    shown = path[:MAX_PATH_CHARS]
    if len(path) > MAX_PATH_CHARS or not _PATH.fullmatch(path):
        raise MalformedError(
            f"policy file {shown!r} has no safe path: letters, digits, _ . - and / between them"
        )
    if path != DATA_FILE and not path.endswith(".rego"):
        raise MalformedError(f"policy file {shown!r} is neither .rego nor {DATA_FILE} at the top")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(f"policy file {shown} is not UTF-8 at byte {error.start}") from error
    if path == DATA_FILE:
        parse_strict(content, max_bytes=MAX_BUNDLE_BYTES)
