"""Template packages: building, signing and, above all, verifying them.

`verify_package` is the one procedure that decides whether a template is accepted; the control plane runs it
before it stores anything and every node runs it again before it compiles. Where packages are kept is
`package_files`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from shared.digests import Digest, digest_from_raw, sha256_digest
from shared.dsse import (
    MAX_ENVELOPE_BYTES,
    TEMPLATE_TYPE,
    VerifiedPayload,
    decode_envelope,
    sign_envelope,
    verify_envelope,
)
from shared.errors import (
    DecompressionBombError,
    MalformedError,
    ManifestInvalidError,
    PackageAlteredError,
    PackageTooLargeError,
    PackageTruncatedError,
    UnknownKeyError,
    UnknownPublisherError,
)
from shared.ids import KeyId
from shared.manifest import MAX_MODULE_BYTES, Manifest, decode_manifest, encode_manifest
from shared.zstd import zstd

if TYPE_CHECKING:
    from shared.signatures import PublicKey, Signer

WASM_MAGIC: Final = b"\x00asm"

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_LEVEL: Final = 19
_ZSTD_MAX_WINDOW_LOG: Final = 23
"""8 MiB: what a decompressor may be made to allocate, whatever a frame's header asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsignedPackage:
    """A built template: its manifest and the blobs that the manifest names."""

    manifest: Manifest
    manifest_bytes: bytes
    """Canonical JSON; what a publisher signs."""
    blobs: Mapping[Digest, bytes] = field(repr=False)

    @property
    def digest(self) -> Digest:
        """The template's digest: that of its canonical manifest."""
        return sha256_digest(self.manifest_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPackage:
    """A template as it travels: an envelope over the manifest, and blobs; not yet verified."""

    envelope: bytes
    blobs: Mapping[Digest, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedManifest:
    """A manifest that a trusted publisher signed. Its files are still to be checked."""

    manifest: Manifest
    digest: Digest
    """SHA-256 of the canonical manifest: the template's address."""
    envelope: bytes = field(repr=False)
    """The DSSE envelope, uncompressed, as verified: these bytes are stored and passed on."""
    manifest_bytes: bytes = field(repr=False)
    publisher_key_ids: frozenset[KeyId]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedTemplate:
    """A template that passed every check: exactly what its publisher signed."""

    signed: VerifiedManifest
    module: bytes = field(repr=False)

    @property
    def manifest(self) -> Manifest:
        """What the publisher signed."""
        return self.signed.manifest

    @property
    def digest(self) -> Digest:
        """The template's address."""
        return self.signed.digest


def make_package(manifest: Manifest, module: bytes | None) -> UnsignedPackage:
    """Return the unsigned package of a manifest and the module that it names; None: the parent brings it.

    Raises:
        PackageTooLargeError: Manifest or module exceed their bounds.
        PackageAlteredError: The manifest names another module.
    """
    if module is not None:
        check_module(manifest, module)
    return UnsignedPackage(
        manifest=manifest,
        manifest_bytes=encode_manifest(manifest),
        blobs={} if module is None else {manifest.module.digest: module},
    )


async def sign_package(package: UnsignedPackage, publishers: Sequence["Signer"]) -> SignedPackage:
    """Sign the manifest, and through it every file, as each publisher in turn.

    Raises:
        KeyUnavailableError: A signer's custodian does not answer.
    """
    envelope = await sign_envelope(TEMPLATE_TYPE, package.manifest_bytes, publishers)
    return SignedPackage(envelope=envelope, blobs=package.blobs)


def verify_package(
    envelope: bytes, blobs: Mapping[Digest, bytes], *, publisher_keys: Mapping[KeyId, "PublicKey"]
) -> VerifiedTemplate:
    """Return the template if, and only if, every check passes; the same at the control plane and at a node.

    1. The envelope is within 512 KiB, packed and unpacked, and complete.
    2. It is a DSSE envelope with at least one signature, over a template.
    3. A trusted publisher is among the signers.
    4. The signatures of all trusted publishers among them hold over the exact manifest.
    5. The manifest is canonical, within 256 KiB, and follows every rule of its format; unknown fields are
    refused.
    6. Every blob that it names is here, with exactly the size and SHA-256 that it names.
    7. No other blob is here.

    Whether the module is WebAssembly that the engine takes is the engine's to say; whether the template was
    retired or revoked is the registry's.

    Raises:
        PackageTooLargeError: Check 1, 5 or 6.
        PackageTruncatedError: Check 1 or 6.
        DecompressionBombError: Check 1.
        MalformedError: Check 2, as do UnknownFieldError, UnsignedError and PayloadTypeError.
        UnknownPublisherError: Check 3.
        SignatureInvalidError: Check 4.
        ManifestInvalidError: Check 5, as does UnknownFieldError.
        PackageAlteredError: Check 6 or 7.
    """
    signed = verify_manifest(envelope, publisher_keys=publisher_keys)
    named = signed.manifest.module.digest
    if named not in blobs:
        raise PackageTruncatedError(f"check 6: module {named} is missing")
    module = blobs[named]
    check_module(signed.manifest, module)
    surplus = blobs.keys() - {named}
    if surplus:
        raise PackageAlteredError(f"check 7: blob {min(surplus)[:80]} is not named by the manifest")
    return VerifiedTemplate(signed=signed, module=module)


def verify_manifest(envelope: bytes, *, publisher_keys: Mapping[KeyId, "PublicKey"]) -> VerifiedManifest:
    """Do checks 1 to 5 of `verify_package`, for a receiver that needs the manifest before the module comes.

    Raises:
        VerificationError: As `verify_package`, checks 1 to 5.
    """
    plain = unpack(envelope, what="template envelope", max_bytes=MAX_ENVELOPE_BYTES)
    if not plain.rstrip().endswith(b"}"):
        raise PackageTruncatedError("check 1: template envelope ends early")
    try:
        verified: VerifiedPayload = verify_envelope(plain, payload_type=TEMPLATE_TYPE, keys=publisher_keys)
    except UnknownKeyError as error:
        raise UnknownPublisherError(f"check 3: {error}") from error
    return VerifiedManifest(
        manifest=decode_manifest(verified.payload),
        digest=sha256_digest(verified.payload),
        envelope=plain,
        manifest_bytes=verified.payload,
        publisher_key_ids=verified.key_ids,
    )


def read_unverified_manifest(envelope: bytes) -> Manifest:
    """Return what an envelope claims, for showing to a person. Nothing may be decided by it.

    Raises:
        VerificationError: The envelope or the manifest in it does not decode.
    """
    plain = unpack(envelope, what="template envelope", max_bytes=MAX_ENVELOPE_BYTES)
    return decode_manifest(decode_envelope(plain).payload)


def check_module(manifest: Manifest, module: bytes | memoryview) -> None:
    """Return if, and only if, `module` is exactly the one that the manifest names (check 6).

    Raises:
        PackageTooLargeError: It has more than 64 MiB.
        PackageTruncatedError: It is shorter than the manifest says.
        PackageAlteredError: It is longer, or has another digest.
    """
    check_module_hash(manifest, hashlib.sha256(module).digest(), len(module))


def check_module_hash(manifest: Manifest, module_sha256: bytes, size_bytes: int) -> None:
    """Like `check_module`, for a module that was hashed while it streamed by.

    Raises:
        VerificationError: As `check_module`.
    """
    named = manifest.module
    if size_bytes > MAX_MODULE_BYTES:
        raise PackageTooLargeError(f"check 6: module has {size_bytes} bytes, the bound is {MAX_MODULE_BYTES}")
    if size_bytes < named.size_bytes:
        raise PackageTruncatedError(f"check 6: module has {size_bytes} of {named.size_bytes} bytes")
    found = digest_from_raw(module_sha256)
    if size_bytes != named.size_bytes or found != named.digest:
        raise PackageAlteredError(
            f"check 6: module is {found} ({size_bytes} bytes), "
            f"signed is {named.digest} ({named.size_bytes} bytes)"
        )


def pack(data: bytes) -> bytes:
    """Return the Zstandard form of a manifest or envelope."""
    return zstd.compress(data, level=_ZSTD_LEVEL)


def unpack(data: bytes, *, what: str, max_bytes: int) -> bytes:
    """Return `data` unpacked when it is one Zstandard frame, else as it is; at most `max_bytes` in any case.

    Raises:
        PackageTooLargeError: `data` itself has more than `max_bytes`.
        DecompressionBombError: It unpacks to more than `max_bytes`, or wants a window above 8 MiB.
        PackageTruncatedError: The frame ends early, or there is nothing.
        MalformedError: The frame is damaged, or something follows it.
    """
    if len(data) > max_bytes:
        raise PackageTooLargeError(f"check 1: {what} has {len(data)} bytes, the bound is {max_bytes}")
    if not data:
        raise PackageTruncatedError(f"check 1: {what} is empty")
    if not data.startswith(_ZSTD_MAGIC):
        return data
    decompressor = zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: _ZSTD_MAX_WINDOW_LOG}
    )
    try:
        plain = decompressor.decompress(data, max_length=max_bytes + 1)
    except zstd.ZstdError as error:
        if "window" in str(error).lower() or "memory" in str(error).lower():
            raise DecompressionBombError(f"check 1: {what} asks for more memory than allowed") from error
        raise MalformedError(f"check 1: {what} is not a whole zstandard frame: {error}") from error
    if len(plain) > max_bytes:
        raise DecompressionBombError(f"check 1: {what} unpacks to more than {max_bytes} bytes")
    if not decompressor.eof:
        raise PackageTruncatedError(f"check 1: {what} ends within a zstandard frame")
    if decompressor.unused_data:
        raise MalformedError(f"check 1: {what} has bytes behind its zstandard frame")
    return plain


def require_wasm(module: bytes) -> None:
    """Refuse what is plainly no WebAssembly module, before anybody signs it.

    Raises:
        ManifestInvalidError: It does not begin as one. Full validation is the engine's.
    """
    if not module.startswith(WASM_MAGIC):
        raise ManifestInvalidError("the module is not WebAssembly: it does not begin with \\0asm")
