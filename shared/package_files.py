"""Template packages as folders: from an author's folder to a package, and from a package to its bytes.

A package ``NAME-VERSION.template/`` holds ``manifest.json.zst`` (canonical manifest, Zstandard),
``blobs/sha256/HEX`` and, once signed, ``envelope.json`` (DSSE over the manifest). Verifies nothing: its
readers only bound what they read.
"""

import os
import stat
from pathlib import Path
from typing import Final

from shared.agent_toml import FILE as AGENT_TOML
from shared.agent_toml import MAX_BYTES as MAX_AGENT_TOML_BYTES
from shared.agent_toml import AgentToml, parse_agent_toml
from shared.canonical import parse_strict
from shared.digests import Digest, parse_digest, sha256_digest
from shared.dsse import MAX_ENVELOPE_BYTES, decode_envelope
from shared.errors import (
    AlreadyExistsError,
    InvalidInputError,
    MalformedError,
    ManifestInvalidError,
    NotFoundError,
    PackageAlteredError,
    PackageTooLargeError,
    PackageTruncatedError,
    ParentMissingError,
    UnsignedError,
    VerificationError,
)
from shared.inheritance import Parent, Schemas, inherit
from shared.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_MODULE_BYTES,
    Manifest,
    ModuleFile,
    Profile,
    Retry,
    decode_manifest,
    require_reachable,
    require_schemas_of_json,
)
from shared.packages import SignedPackage, UnsignedPackage, make_package, pack, require_wasm, unpack
from shared.schemas import MAX_SCHEMA_BYTES, JsonSchema

ENVELOPE_FILE: Final = "envelope.json"
MANIFEST_FILE: Final = "manifest.json.zst"
BLOB_FOLDER: Final = Path("blobs") / "sha256"
MAX_BLOBS: Final = 16
"""More files than any version of the format names; listing stops there."""


def read_author(folder: Path) -> AgentToml:
    """Return an author's agent.toml; `extends` says which parent `build_package` needs.

    Raises:
        NotFoundError, PackageTooLargeError, ManifestInvalidError, UnknownFieldError: As `build_package`.
    """
    return parse_agent_toml(_read_file(folder / AGENT_TOML, MAX_AGENT_TOML_BYTES))


def build_package(folder: Path, parent: Parent | None = None) -> UnsignedPackage:
    """Return the unsigned package of an author's folder: its agent.toml, module and schemas.

    With a parent it is resolved: all that it inherits is in it, but for the bytes of an inherited module.

    Raises:
        NotFoundError: agent.toml or a file that it names is missing, or is no regular file.
        PackageTooLargeError: A file exceeds its bound.
        ManifestInvalidError: agent.toml or a schema breaks a rule, or the module is no WebAssembly.
        ParentMissingError, TemplateCycleError, TemplateWidensError: As `inherit`.
        UnknownFieldError: agent.toml holds a key that is not known.
    """
    author = read_author(folder)
    return build_package_of(author, _read_module(folder, author), folder, parent)


def build_package_of(
    author: AgentToml, module: bytes | None, folder: Path, parent: Parent | None = None
) -> UnsignedPackage:
    """As `build_package`, of an agent.toml and a module that are read already; `folder` holds the schemas.

    Raises:
        NotFoundError, PackageTooLargeError, ManifestInvalidError, ParentMissingError, TemplateCycleError,
        TemplateWidensError: As `build_package`.
    """
    schemas = Schemas(
        parameters=_read_schema(folder, author.parameters_schema),
        input=_read_schema(folder, author.input_schema),
        output=_read_schema(folder, author.output_schema),
    )
    named = None if module is None or author.module is None else _module_file(author.module, module)
    if author.extends is not None:
        if parent is None:
            raise ParentMissingError(f"{author.name}@{author.version} extends {author.extends}")
        manifest = inherit(author, schemas, named, parent)
    else:
        manifest = _whole(author, schemas, named)
    require_reachable(manifest)
    require_schemas_of_json(manifest)
    return make_package(manifest, module)


def _read_module(folder: Path, author: AgentToml) -> bytes | None:
    if author.module is None:
        return None
    module = _read_file(folder / author.module, MAX_MODULE_BYTES)
    require_wasm(module)
    return module


def _module_file(name: str, module: bytes) -> ModuleFile:
    return ModuleFile(file_name=name, digest=sha256_digest(module), size_bytes=len(module))


def _whole(author: AgentToml, schemas: Schemas, module: ModuleFile | None) -> Manifest:
    assert module is not None  # agent.toml cannot leave it out without a parent
    return Manifest(
        name=author.name,
        version=author.version,
        media_type=author.media_type or "application/json",
        module=module,
        parameters_schema=schemas.parameters,
        input_schema=schemas.input,
        output_schema=schemas.output,
        limits=author.limits,
        capabilities=author.capabilities,
        profile=author.profile or Profile.DEFAULT,
        retry=author.retry or Retry.UNSAFE,
    )


def package_folder_name(manifest: Manifest) -> str:
    """Return the name that a package's folder has by default."""
    return f"{manifest.name}-{manifest.version}.template"


def write_package(package: UnsignedPackage, parent: Path) -> Path:
    """Write an unsigned package as a new folder within `parent`; return the folder.

    Raises:
        AlreadyExistsError: The folder exists with another content; the same content is left as it is.
    """
    folder = parent / package_folder_name(package.manifest)
    if folder.exists():
        if read_unsigned_package(folder).manifest_bytes == package.manifest_bytes:
            return folder
        raise AlreadyExistsError(f"{folder} exists with another content: raise the version, or remove it")
    (folder / BLOB_FOLDER).mkdir(parents=True)
    for digest, blob in package.blobs.items():
        _write_file(folder / BLOB_FOLDER / digest.removeprefix("sha256:"), blob)
    _write_file(folder / MANIFEST_FILE, pack(package.manifest_bytes))
    return folder


def holds_package(folder: Path, package: UnsignedPackage) -> bool:
    """Tell whether a folder holds the manifest and the blobs of a package, byte for byte, and no others."""
    try:
        packed = _read_file(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
        return packed == pack(package.manifest_bytes) and _read_blobs(folder) == package.blobs
    except (NotFoundError, VerificationError):
        return False


def write_envelope(folder: Path, envelope: bytes) -> None:
    """Add the signed envelope to a package, replacing an older one."""
    _write_file(folder / ENVELOPE_FILE, envelope)


def read_unsigned_package(folder: Path) -> UnsignedPackage:
    """Return a package to be signed, its blobs checked against its manifest.

    Raises:
        NotFoundError: The folder is no package.
        VerificationError: As `verify_package` says of manifest and blobs.
    """
    packed = _read_file(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    manifest_bytes = unpack(packed, what=MANIFEST_FILE, max_bytes=MAX_MANIFEST_BYTES)
    manifest = decode_manifest(manifest_bytes)
    blobs = _read_blobs(folder)
    if manifest.module.digest not in blobs and not manifest.extends:
        raise PackageTruncatedError(f"module {manifest.module.digest} is missing in {folder}")
    return make_package(manifest, blobs.get(manifest.module.digest))


def read_signed_package(folder: Path) -> SignedPackage:
    """Return envelope and blobs of a package, for `verify_package`.

    Raises:
        NotFoundError: The folder is no package.
        UnsignedError: It has no envelope.
        PackageTooLargeError: A file exceeds its bound.
        DecompressionBombError: The manifest unpacks to more than its bound.
        PackageAlteredError: The manifest beside the envelope is not the one in it, or a blob has a name that
            is no digest.
    """
    packed = _read_file(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    manifest_bytes = unpack(packed, what=MANIFEST_FILE, max_bytes=MAX_MANIFEST_BYTES)
    if not (folder / ENVELOPE_FILE).exists():
        raise UnsignedError(f"package {folder} is not signed")
    envelope = _read_file(folder / ENVELOPE_FILE, MAX_ENVELOPE_BYTES)
    if not envelope.rstrip().endswith(b"}"):
        raise PackageTruncatedError(f"{folder / ENVELOPE_FILE} ends early")
    if decode_envelope(envelope).payload != manifest_bytes:
        raise PackageAlteredError(f"{folder / MANIFEST_FILE} is not the manifest that was signed")
    return SignedPackage(envelope=envelope, blobs=_read_blobs(folder))


def _read_blobs(folder: Path) -> dict[Digest, bytes]:
    blobs: dict[Digest, bytes] = {}
    try:
        with os.scandir(folder / BLOB_FOLDER) as entries:
            for count, entry in enumerate(entries, 1):
                if count > MAX_BLOBS:
                    raise PackageTooLargeError(f"{folder} holds more than {MAX_BLOBS} blobs")
                digest = parse_digest(f"sha256:{entry.name}")
                blobs[digest] = _read_file(Path(entry.path), MAX_MODULE_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PackageTruncatedError(f"{folder} has no folder {BLOB_FOLDER}") from error
    except InvalidInputError as error:
        raise PackageAlteredError(f"{folder} holds a blob whose name is no digest: {error}") from error
    return blobs


def _read_schema(folder: Path, name: str | None) -> JsonSchema | None:
    if name is None:
        return None
    try:
        return JsonSchema.from_object(parse_strict(_read_file(folder / name, MAX_SCHEMA_BYTES)))
    except (MalformedError, ManifestInvalidError) as error:
        raise ManifestInvalidError(f"{name}: {error}") from error


def _read_file(path: Path, max_bytes: int) -> bytes:
    # O_NOFOLLOW: a package from somebody else must not name files of this machine.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotFoundError(f"{path} is not a regular file")
        if found.st_size > max_bytes:
            raise PackageTooLargeError(f"{path} has {found.st_size} bytes, the bound is {max_bytes}")
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise PackageTooLargeError(f"{path} grew beyond {max_bytes} bytes")
    return data


def _write_file(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
