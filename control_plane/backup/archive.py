"""An archive written and read as a stream: header, then a tar in zstd, sealed. Holds no policy and no SQL.

Nothing of an archive is parsed before it was authenticated, except the length of its header and the envelope
around it.
"""

import hashlib
import io
import struct
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import IO, Final

from control_plane.backup.domain import (
    CONTENTS,
    DATABASE,
    FILES,
    HEADER_TYPE,
    MAGIC,
    MAX_CONTENTS_BYTES,
    MAX_HEADER_BYTES,
    MAX_PARTS,
    PART_BYTES,
    BackupHeader,
    Part,
    decode_contents,
    decode_header,
    encode_contents,
    encode_header,
    is_part,
)
from control_plane.backup.keys import KEY_BYTES, CreateKey, RestoreKey
from control_plane.backup.sealing import SealingReader, SealingWriter
from shared.clock import Random
from shared.dsse import decode_envelope, encode_envelope, envelope_of, pae, verify_envelope
from shared.errors import EvidenceMismatchError, MalformedError, UnknownKeyError
from shared.signatures import Signature
from shared.zstd import zstd

_LENGTH: Final = struct.Struct(">I")
_LEVEL: Final = 3
_CHECKSUMS: Final[Mapping[int, int]] = {
    zstd.CompressionParameter.compression_level: _LEVEL,
    zstd.CompressionParameter.checksum_flag: 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadHeader:
    """The header of an archive, and the bytes that its segments are bound to."""

    header: BackupHeader
    envelope: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHeader:
    """What is known before anything is written."""

    header: BackupHeader
    key: bytes = field(repr=False)


class ArchiveWriter:
    """Writes one archive into a file that is open."""

    def __init__(self, below: IO[bytes], *, new: NewHeader, maker: CreateKey) -> None:
        envelope = _signed(new.header, maker)
        below.write(MAGIC + _LENGTH.pack(len(envelope)) + envelope)
        self._sealing = SealingWriter(below, key=new.key, context=_context(envelope))
        self._zstd = zstd.ZstdFile(self._sealing, "w", options=_CHECKSUMS)
        self._tar = tarfile.open(  # noqa: SIM115 - closed by `finish`
            fileobj=self._zstd, mode="w|", format=tarfile.USTAR_FORMAT
        )
        self._parts: list[Part] = []

    def add_file(self, name: str, data: bytes) -> None:
        """Add a file of the installation."""
        self._add(f"{FILES}/{name}", data)

    def add_database(self, dump: IO[bytes]) -> int:
        """Add the dump as it comes; returns its length."""
        total = number = 0
        while data := dump.read(PART_BYTES):
            self._add(f"{DATABASE}/{number:08}", data)
            total, number = total + len(data), number + 1
        return total

    def finish(self) -> None:
        """Write the list of contents and the end."""
        self._add_raw(CONTENTS, encode_contents(self._parts))
        self._tar.close()
        self._zstd.close()
        self._sealing.close()

    def abort(self) -> None:
        """Leave what was written without its end: nobody takes it for whole."""
        self._sealing.abort()

    def _add(self, name: str, data: bytes) -> None:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._parts.append(Part(name=name, size_bytes=len(data), sha256=digest))
        self._add_raw(name, data)

    def _add_raw(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o600
        self._tar.addfile(member, io.BytesIO(data))


def new_header(header: BackupHeader, maker: CreateKey, random: Random) -> NewHeader:
    """Return the header with a key of its own for the archive, encrypted for the recipient."""
    key = random.token_bytes(KEY_BYTES)
    named = replace(header, recipient=maker.recipient_digest, wrapped_key=maker.wrap(key))
    return NewHeader(header=named, key=key)


def read_envelope(below: IO[bytes]) -> bytes:
    """Return the envelope that begins an archive; nothing of it is verified.

    Raises:
        MalformedError: It is no archive.
    """
    start = _read(below, len(MAGIC) + _LENGTH.size)
    if not start.startswith(MAGIC) or len(start) < len(MAGIC) + _LENGTH.size:
        raise MalformedError("check 1: this is no backup: it does not begin as one")
    (length,) = _LENGTH.unpack(start[len(MAGIC) :])
    if length > MAX_HEADER_BYTES:
        raise MalformedError(f"check 1: the header has {length} bytes, at most {MAX_HEADER_BYTES} can be")
    return _read(below, length)


def claimed_header(envelope: bytes) -> BackupHeader:
    """Return what an envelope claims, for showing to a person. Nothing may be decided by it.

    Raises:
        MalformedError, UnknownFieldError, UnsupportedVersionError: It is no header.
    """
    return decode_header(decode_envelope(envelope, max_bytes=MAX_HEADER_BYTES).payload)


def verified_header(envelope: bytes, key: RestoreKey) -> ReadHeader:
    """Check 1: whoever is known to make backups signed the header, and it is for this key.

    Raises:
        VerificationError: It is not, by its kinds.
    """
    verified = verify_envelope(
        envelope,
        payload_type=HEADER_TYPE,
        keys={key.maker.key_id: key.maker},
        max_bytes=MAX_HEADER_BYTES,
    )
    header = decode_header(verified.payload)
    if header.recipient != key.recipient_digest:
        raise UnknownKeyError(
            f"check 1: the archive is for key {header.recipient}, this one is {key.recipient_digest}"
        )
    return ReadHeader(header=header, envelope=envelope)


class ArchiveReader:
    """Reads one archive, part by part, each with its digest looked at in the end.

    `parts` raises:
        SignatureInvalidError: Check 2, a segment was altered or is missing.
        MalformedError: Check 3, what is inside is no tar in zstd of known names.
        EvidenceMismatchError: Check 4, the list at the end is of other files.
    """

    def __init__(self, below: IO[bytes], *, read: ReadHeader, key: RestoreKey) -> None:
        self.header = read.header
        self.dump_bytes = 0
        unwrapped = key.unwrap(read.header.wrapped_key)
        self._sealed = SealingReader(below, key=unwrapped, context=_context(read.envelope))

    def parts(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each part, the list of contents not among them."""
        seen: list[Part] = []
        listed: tuple[Part, ...] | None = None
        try:
            with (
                zstd.ZstdFile(self._sealed, "r") as plain,
                tarfile.open(fileobj=plain, mode="r|") as tar,
            ):
                for member in tar:
                    content = self._content(tar, member, len(seen))
                    if member.name == CONTENTS:
                        listed = decode_contents(content)
                        continue
                    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
                    seen.append(Part(name=member.name, size_bytes=len(content), sha256=digest))
                    yield member.name, content
                while plain.read(1 << 16):
                    """To the last segment: what is behind the tar's end is authenticated too."""
        except (tarfile.TarError, zstd.ZstdError, EOFError) as error:
            raise MalformedError(f"check 3: the archive does not unpack: {error}") from error
        if listed != tuple(seen):
            raise EvidenceMismatchError("check 4: the list of contents is not of what the archive holds")

    def _content(self, tar: tarfile.TarFile, member: tarfile.TarInfo, number: int) -> bytes:
        most = MAX_CONTENTS_BYTES if member.name == CONTENTS else PART_BYTES
        if not member.isreg() or not is_part(member.name) or member.size > most or number > MAX_PARTS:
            raise MalformedError(
                f"check 3: the archive holds {member.name[:64]!r}, which is none of its files"
            )
        file = tar.extractfile(member)
        return b"" if file is None else file.read()


def _signed(header: BackupHeader, maker: CreateKey) -> bytes:
    payload = encode_header(header)
    signature = Signature(
        key_id=maker.signer.key_id,
        key_version=1,
        value=maker.signer.sign(pae(HEADER_TYPE, payload)),
    )
    return encode_envelope(envelope_of(HEADER_TYPE, payload, [signature]))


def _context(envelope: bytes) -> bytes:
    return hashlib.sha256(MAGIC + envelope).digest()


def _read(below: IO[bytes], size: int) -> bytes:
    parts = []
    while size and (part := below.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
