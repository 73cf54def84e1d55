"""Every way in which a template package can be wrong, through the one procedure that both planes run."""

import json
from dataclasses import replace

import pytest

from shared import package_files, packages
from shared.canonical import canonical_json
from shared.digests import sha256_digest
from shared.dsse import KEYSET_TYPE, TEMPLATE_TYPE, sign_envelope
from shared.errors import (
    AlreadyExistsError,
    DecompressionBombError,
    MalformedError,
    ManifestInvalidError,
    NotFoundError,
    PackageAlteredError,
    PackageTooLargeError,
    PackageTruncatedError,
    PayloadTypeError,
    SignatureInvalidError,
    UnknownFieldError,
    UnknownPublisherError,
    UnsignedError,
)
from shared.manifest import MAX_MODULE_BYTES, ModuleFile, encode_manifest
from shared.packages import make_package, sign_package, verify_package
from shared.zstd import zstd
from tests.fixtures.keys import rsa_key, signer, trusting
from tests.unit.shared.builders import MODULE, a_manifest

PUBLISHER, STRANGER = rsa_key("publisher"), rsa_key("stranger")
DIGEST = sha256_digest(MODULE)


async def signed(manifest=None, key=PUBLISHER):
    return await sign_package(make_package(manifest or a_manifest(), MODULE), [signer(key)])


async def enveloped(payload, payload_type=TEMPLATE_TYPE) -> bytes:
    return await sign_envelope(payload_type, payload, [signer(PUBLISHER)])


def verify(envelope, blobs=None, *keys):
    blobs = {DIGEST: MODULE} if blobs is None else blobs
    return verify_package(envelope, blobs, publisher_keys=trusting(*keys or (PUBLISHER,)))


async def test_signed_package_comes_back_whole():
    package = await signed()
    template = verify(package.envelope, package.blobs)
    assert (template.manifest, template.module) == (a_manifest(), MODULE)
    assert template.digest == sha256_digest(encode_manifest(a_manifest()))
    assert template.signed.envelope == package.envelope
    assert template.signed.publisher_key_ids == {PUBLISHER.key_id}


async def test_compressed_envelope_is_accepted_and_kept_uncompressed():
    package = await signed()
    assert verify(packages.pack(package.envelope)).signed.envelope == package.envelope


async def test_unsigned_package_is_refused():
    document = json.loads((await signed()).envelope)
    with pytest.raises(UnsignedError):
        verify(canonical_json({**document, "signatures": []}))


async def test_package_of_an_unknown_publisher_is_refused():
    with pytest.raises(UnknownPublisherError, match="check 3"):
        verify((await signed(key=STRANGER)).envelope)


async def test_wrongly_signed_package_is_refused():
    document = json.loads((await signed(key=STRANGER)).envelope)
    document["signatures"][0]["keyid"] = PUBLISHER.key_id
    with pytest.raises(SignatureInvalidError):
        verify(canonical_json(document))


async def test_signature_of_one_manifest_does_not_serve_another():
    document = json.loads((await signed()).envelope)
    document["payload"] = json.loads((await signed(a_manifest(version="1.2.1"))).envelope)["payload"]
    with pytest.raises(SignatureInvalidError):
        verify(canonical_json(document))


async def test_well_signed_payload_of_another_type_is_no_template():
    with pytest.raises(PayloadTypeError):
        verify(await enveloped(encode_manifest(a_manifest()), KEYSET_TYPE))


async def test_altered_module_is_refused():
    package = await signed()
    with pytest.raises(PackageAlteredError, match="check 6"):
        verify(package.envelope, {DIGEST: MODULE[:-1] + b"!"})
    with pytest.raises(PackageAlteredError, match="check 6"):
        verify(package.envelope, {DIGEST: MODULE + b"!"})


@pytest.mark.parametrize("blobs", [{}, {DIGEST: MODULE[:-1]}, {DIGEST: b""}])
async def test_missing_or_truncated_module_is_refused(blobs):
    with pytest.raises(PackageTruncatedError, match="check 6"):
        verify((await signed()).envelope, blobs)


async def test_blob_that_nobody_signed_is_refused():
    extra = b"\x00asm extra"
    with pytest.raises(PackageAlteredError, match="check 7"):
        verify((await signed()).envelope, {DIGEST: MODULE, sha256_digest(extra): extra})


async def test_truncated_envelope_is_refused():
    envelope = (await signed()).envelope
    for cut in (1, len(envelope) // 2, len(envelope) - 1):
        with pytest.raises(PackageTruncatedError, match="check 1"):
            verify(envelope[:-cut])
    packed = packages.pack(envelope)
    for cut in (1, len(packed) // 2, len(packed) - 4):
        with pytest.raises(PackageTruncatedError, match="check 1"):
            verify(packed[:-cut])


async def test_oversized_envelope_and_module_are_refused():
    with pytest.raises(PackageTooLargeError, match="check 1"):
        verify(b"{" + b" " * (512 * 1024) + b"}")
    big = a_manifest(module=bytes(8))
    with pytest.raises(PackageTooLargeError, match="check 6"):
        packages.check_module_hash(big, bytes(32), MAX_MODULE_BYTES + 1)


async def test_manifest_that_claims_a_module_above_the_bound_is_refused():
    too_big = ModuleFile(file_name="a.wasm", digest=DIGEST, size_bytes=MAX_MODULE_BYTES + 1)
    with pytest.raises(ManifestInvalidError, match="size_bytes"):
        verify(await enveloped(encode_manifest(replace(a_manifest(), module=too_big))))


async def test_oversized_manifest_is_refused_though_well_signed():
    with pytest.raises(PackageTooLargeError):
        verify(await enveloped(b" " * (256 * 1024 + 1)))


@pytest.mark.parametrize("window_log", [None, 27])
def test_decompression_bomb_is_refused_before_it_goes_off(window_log):
    options = {zstd.CompressionParameter.window_log: window_log} if window_log else None
    bomb = zstd.compress(bytes(200_000_000), options=options)
    assert len(bomb) < 30_000
    with pytest.raises(DecompressionBombError, match="check 1"):
        verify(bomb)


def test_bomb_of_many_small_frames_is_refused():
    frames = zstd.compress(b"{}") * 10_000
    with pytest.raises(MalformedError, match="behind its zstandard frame"):
        verify(frames)


def test_frame_that_asks_for_a_huge_window_is_refused_however_little_it_holds():
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    frame = compressor.compress(b"{}") + compressor.flush()
    with pytest.raises(DecompressionBombError, match="more memory"):
        verify(frame)


def test_frame_without_its_end_is_truncated_even_when_its_content_looks_whole():
    compressor = zstd.ZstdCompressor()
    open_frame = compressor.compress(b"{}", mode=zstd.ZstdCompressor.FLUSH_BLOCK)
    with pytest.raises(PackageTruncatedError, match="within a zstandard frame"):
        packages.unpack(open_frame, what="manifest", max_bytes=100)


async def test_damaged_zstandard_frame_is_refused():
    packed = bytearray(packages.pack((await signed()).envelope))
    packed[4] ^= 0xFF
    with pytest.raises((MalformedError, DecompressionBombError, PackageTruncatedError)):
        verify(bytes(packed))


async def test_manifest_with_an_unknown_field_is_refused_though_well_signed():
    document = json.loads(encode_manifest(a_manifest()))
    with pytest.raises(UnknownFieldError):
        verify(await enveloped(canonical_json({**document, "capabilites": {"http": []}})))


async def test_streaming_receiver_can_check_manifest_and_module_apart():
    package = await signed()
    early = packages.verify_manifest(package.envelope, publisher_keys=trusting(PUBLISHER))
    packages.check_module(early.manifest, MODULE)
    assert packages.read_unverified_manifest(package.envelope) == early.manifest


# --- folders ---


@pytest.fixture
def author(tmp_path):
    folder = tmp_path / "author"
    folder.mkdir()
    (folder / "agent.toml").write_text(
        '[template]\nname = "redact"\nversion = "1.2.0"\nmodule = "redact.wasm"\n'
        '[parameters]\nschema = "p.json"\n'
    )
    (folder / "redact.wasm").write_bytes(MODULE)
    (folder / "p.json").write_text('{"type": "object", "properties": {"rate": {"maximum": 1.5}}}')
    return folder


@pytest.fixture
async def package_folder(author, tmp_path):
    built = package_files.build_package(author)
    folder = package_files.write_package(built, tmp_path)
    package_files.write_envelope(folder, (await sign_package(built, [signer(PUBLISHER)])).envelope)
    return folder


def verify_folder(folder):
    package = package_files.read_signed_package(folder)
    return verify(package.envelope, package.blobs)


async def test_folder_is_built_signed_and_verified(package_folder, author):
    template = verify_folder(package_folder)
    assert package_folder.name == "redact-1.2.0.template"
    assert template.module == MODULE
    assert template.manifest.parameters_schema is not None
    assert sorted(str(p.relative_to(package_folder)) for p in package_folder.rglob("*") if p.is_file()) == [
        f"blobs/sha256/{DIGEST.removeprefix('sha256:')}",
        "envelope.json",
        "manifest.json.zst",
    ]


def test_building_twice_gives_the_same_bytes(author):
    assert package_files.build_package(author) == package_files.build_package(author)


def test_package_is_never_replaced_by_another_of_its_version(author, tmp_path):
    folder = package_files.write_package(package_files.build_package(author), tmp_path)
    assert package_files.write_package(package_files.build_package(author), tmp_path) == folder
    (author / "redact.wasm").write_bytes(MODULE + b"x")
    with pytest.raises(AlreadyExistsError):
        package_files.write_package(package_files.build_package(author), tmp_path)


@pytest.mark.parametrize("name", ["agent.toml", "redact.wasm", "p.json"])
def test_missing_file_of_the_author_is_named(author, name):
    (author / name).unlink()
    with pytest.raises(NotFoundError, match=name):
        package_files.build_package(author)


def test_link_out_of_the_authors_folder_is_not_followed(author):
    (author / "p.json").unlink()
    (author / "p.json").symlink_to("/etc/hostname")
    with pytest.raises(NotFoundError):
        package_files.build_package(author)


def test_module_that_is_no_wasm_and_schema_that_is_none_are_refused(author):
    (author / "redact.wasm").write_bytes(b"#!/bin/sh")
    with pytest.raises(ManifestInvalidError, match="not WebAssembly"):
        package_files.build_package(author)
    (author / "redact.wasm").write_bytes(MODULE)
    (author / "p.json").write_text("{")
    with pytest.raises(ManifestInvalidError, match=r"p\.json"):
        package_files.build_package(author)


def test_destination_that_no_call_matches_is_refused(author):
    text = '[capabilities]\nhttp = [{ method = "GET", url = "https://0x7f.1/" }]\n'
    (author / "agent.toml").write_text((author / "agent.toml").read_text() + text)
    with pytest.raises(ManifestInvalidError, match="no dotted IPv4 address"):
        package_files.build_package(author)


def test_module_above_64_mib_is_refused_without_reading_it(author):
    with (author / "redact.wasm").open("r+b") as file:
        file.truncate(MAX_MODULE_BYTES + 1)
    with pytest.raises(PackageTooLargeError):
        package_files.build_package(author)


def test_unsigned_folder_is_refused(package_folder):
    (package_folder / "envelope.json").unlink()
    with pytest.raises(UnsignedError):
        verify_folder(package_folder)


def test_bomb_in_the_manifest_file_is_refused(package_folder):
    (package_folder / "manifest.json.zst").write_bytes(zstd.compress(bytes(200_000_000)))
    with pytest.raises(DecompressionBombError):
        verify_folder(package_folder)
    with pytest.raises(DecompressionBombError):
        package_files.read_unsigned_package(package_folder)


def test_manifest_file_that_differs_from_the_signed_one_is_refused(package_folder):
    other = encode_manifest(a_manifest(version="9.9.9"))
    (package_folder / "manifest.json.zst").write_bytes(packages.pack(other))
    with pytest.raises(PackageAlteredError):
        verify_folder(package_folder)


def test_altered_truncated_missing_and_misnamed_blobs_are_refused(package_folder):
    blob = next((package_folder / "blobs" / "sha256").iterdir())
    blob.write_bytes(MODULE[:-1] + b"!")
    with pytest.raises(PackageAlteredError):
        verify_folder(package_folder)
    blob.write_bytes(MODULE[:-1])
    with pytest.raises(PackageTruncatedError):
        verify_folder(package_folder)
    blob.rename(blob.with_name("module.wasm"))
    with pytest.raises(PackageAlteredError, match="no digest"):
        verify_folder(package_folder)
    blob.with_name("module.wasm").unlink()
    with pytest.raises(PackageTruncatedError):
        verify_folder(package_folder)
    blob.parent.rmdir()
    with pytest.raises(PackageTruncatedError):
        verify_folder(package_folder)


def test_truncated_envelope_file_is_refused(package_folder):
    path = package_folder / "envelope.json"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(PackageTruncatedError):
        verify_folder(package_folder)


def test_number_of_blobs_is_bounded(package_folder):
    for number in range(package_files.MAX_BLOBS):
        (package_folder / "blobs" / "sha256" / f"{number:064x}").write_bytes(b"")
    with pytest.raises(PackageTooLargeError, match="more than 16 blobs"):
        verify_folder(package_folder)
