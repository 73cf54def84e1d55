"""The bundle: everything a replay needs in one file, to be carried to where there is no control plane.

A ZIP archive whose members are stored uncompressed, so nothing in it can grow: ``index.json`` names the
SHA-256 and size of every other member, and the salts of the bodies. Nothing is parsed before its digest held.
"""

import base64
import binascii
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from data_plane.replay.domain import Material, PartName, SaltedBody
from shared.canonical import canonical_json, parse_canonical
from shared.digests import SALT_BYTES, sha256_digest
from shared.errors import MalformedError, PackageAlteredError, PackageTooLargeError, UnsupportedVersionError
from shared.fields import Fields

FORMAT: Final = "agentfactory.replay-bundle.v1"
INDEX: Final = "index.json"
RECEIPT: Final = "receipt.json"
MODULE: Final = "module.wasm"
PARAMETERS: Final = "parameters.json"
POLICY: Final = "policy.json"
MAX_INDEX_BYTES: Final = 64 * 1024
MAX_BYTES: Final[Mapping[str, int]] = {
    RECEIPT: 8 * 1024 * 1024,
    MODULE: 64 * 1024 * 1024,
    PARAMETERS: 64 * 1024,
    POLICY: 4 * 1024 * 1024,
    PartName.INPUT: 16 * 1024 * 1024,
    PartName.OUTPUT: 16 * 1024 * 1024,
    PartName.LOG: 16 * 1024 * 1024,
    PartName.RECORDING: 4 * 1024 * 1024,
}
"""Of each member; together with the index the bound of a bundle."""
MAX_BUNDLE_BYTES: Final = MAX_INDEX_BYTES + sum(MAX_BYTES.values()) + 64 * 1024
_NEEDED: Final = (RECEIPT, MODULE, PARAMETERS)
_MADE_AT: Final = (1980, 1, 1, 0, 0, 0)
"""The same parts make the same bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a bundle holds."""

    receipt: bytes = field(repr=False)
    material: Material
    policy: bytes = field(default=b"", repr=False)
    """The policy that decided; empty: whoever made the bundle may not see it."""


def write_bundle(bundle: Bundle) -> bytes:
    """Return the file.

    Raises:
        PackageTooLargeError: A part is larger than bundles carry.
    """
    bodies = bundle.material.bodies
    members: dict[str, bytes] = {
        RECEIPT: bundle.receipt,
        MODULE: bundle.material.module,
        PARAMETERS: bundle.material.parameters,
        **{str(name): body.content for name, body in bodies.items()},
    }
    if bundle.policy:
        members[POLICY] = bundle.policy
    for name, content in members.items():
        if len(content) > MAX_BYTES[name]:
            raise PackageTooLargeError(f"{name} has {len(content)} bytes, the bound is {MAX_BYTES[name]}")
    index = {
        "type": FORMAT,
        "members": [
            {
                "name": name,
                "digest": sha256_digest(members[name]),
                "size_bytes": len(members[name]),
                **_salt_json(bodies, name),
            }
            for name in sorted(members)
        ],
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in ((INDEX, canonical_json(index)), *sorted(members.items())):
            archive.writestr(zipfile.ZipInfo(name, _MADE_AT), content)
    return file.getvalue()


def is_bundle(data: bytes) -> bool:
    """Whether a file looks like a bundle rather than a receipt."""
    return data.startswith(b"PK\x03\x04")


def read_bundle(data: bytes) -> Bundle:
    """Return what a bundle holds if, and only if, every check passes.

    1. It is a ZIP archive of at most 64 members, and not larger than a bundle can be.
    2. Every member is known, there once, stored uncompressed, and within its bound.
    3. The index is canonical, of this format, and names exactly the other members.
    4. Every member has the size and SHA-256 that the index names.
    5. Receipt, module and parameters are there; bodies, and only they, have a salt of 32 bytes.

    Raises:
        VerificationError: By its classes PackageTooLargeError (check 1 or 2), MalformedError (1, 2, 3 or 5),
            UnsupportedVersionError (3), PackageAlteredError (4).
    """
    members = _members(data)
    if INDEX not in members:
        raise MalformedError(f"check 3: the bundle has no {INDEX}")
    fields = Fields(parse_canonical(members.pop(INDEX), max_bytes=MAX_INDEX_BYTES), "bundle")
    found = fields.text("type")
    if found != FORMAT:
        raise UnsupportedVersionError(
            f"check 3: bundle format is {found[:64]!r}, this build reads {FORMAT!r}"
        )
    salts: dict[str, bytes] = {}
    named = set()
    for entry in fields.children("members", max_items=len(MAX_BYTES)):
        named.add(_check_entry(entry, members, salts))
    fields.end()
    if named != set(members):
        raise MalformedError("check 3: the bundle holds other members than its index names")
    missing = [name for name in _NEEDED if name not in members]
    if missing:
        raise MalformedError(f"check 5: the bundle has no {missing[0]}")
    bodies = {
        name: SaltedBody(content=members[name], salt=salts[name]) for name in PartName if name in members
    }
    return Bundle(
        receipt=members[RECEIPT],
        material=Material(module=members[MODULE], parameters=members[PARAMETERS], bodies=bodies),
        policy=members.get(POLICY, b""),
    )


def _members(data: bytes) -> dict[str, bytes]:
    if len(data) > MAX_BUNDLE_BYTES:
        raise PackageTooLargeError(
            f"check 1: the bundle has {len(data)} bytes, the bound is {MAX_BUNDLE_BYTES}"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            _check_infos(infos)
            return {info.filename: archive.read(info) for info in infos}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise MalformedError(f"check 1: this is no bundle: {error}") from error


def _check_infos(infos: list[zipfile.ZipInfo]) -> None:
    bounds = {**MAX_BYTES, INDEX: MAX_INDEX_BYTES}
    names = [info.filename for info in infos]
    if len(names) > len(bounds) or len(names) != len(set(names)):
        raise MalformedError("check 2: the bundle holds a member twice, or too many")
    for info in infos:
        name = info.filename
        if name not in bounds:
            raise MalformedError(f"check 2: the bundle holds {name[:64]!r}, which no bundle has")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise MalformedError(f"check 2: {name} is not stored as it is")
        if info.file_size > bounds[name]:
            raise PackageTooLargeError(
                f"check 2: {name} has {info.file_size} bytes, the bound is {bounds[name]}"
            )


def _check_entry(entry: Fields, members: Mapping[str, bytes], salts: dict[str, bytes]) -> str:
    name = entry.text("name", max_chars=64)
    digest, size = entry.digest("digest"), entry.integer("size_bytes")
    if name not in members:
        raise MalformedError(f"check 3: the index names {name[:64]!r}, which is not there")
    if (len(members[name]), sha256_digest(members[name])) != (size, digest):
        raise PackageAlteredError(f"check 4: {name} is not what the index names")
    if entry.has("salt") != (name in set(PartName)):
        raise MalformedError(f"check 5: {name} has a salt that it should not have, or none")
    if entry.has("salt"):
        salts[name] = _salt(entry.text("salt", max_chars=64))
    entry.end()
    return name


def _salt(text: str) -> bytes:
    try:
        salt = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedError("check 5: a salt is not base64") from error
    if len(salt) != SALT_BYTES:
        raise MalformedError(f"check 5: a salt has {len(salt)} bytes, not {SALT_BYTES}")
    return salt


def _salt_json(bodies: Mapping[PartName, SaltedBody], name: str) -> dict[str, Any]:
    body = next((body for part, body in bodies.items() if part == name), None)
    return {} if body is None else {"salt": base64.b64encode(body.salt).decode()}
