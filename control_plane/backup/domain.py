"""What a backup is: its header, its name, what is in it, and which are kept. No I/O, no clock.

An archive is a magic, the length of its header, the header (a DSSE envelope by whoever makes backups), and
segments of AES-256-GCM. Inside is a tar in zstd: the parts of the database's dump, public files of the
installation, and at the end a list of all of that with digests.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NewType

from shared.canonical import canonical_json, parse_canonical
from shared.errors import InvalidInputError, MalformedError, UnsupportedVersionError
from shared.fields import Fields, time_to_text
from shared.ids import IdKind, InstallationId, parse_id

BackupId = NewType("BackupId", str)
BACKUP: Final = IdKind(prefix="bak", type=BackupId)

MAGIC: Final = b"AFBACKUP1\n"
HEADER_TYPE: Final = "application/vnd.agentfactory.backup.v1+json"
HEADER_FORMAT: Final = "agentfactory.backup.v1"
MAX_HEADER_BYTES: Final = 16 * 1024
SEGMENT_BYTES: Final = 1024 * 1024
"""Plain bytes of every segment but the last."""
MAX_WRAPPED_KEY_CHARS: Final = 512

DATABASE: Final = "database"
PART_BYTES: Final = 8 * 1024 * 1024
"""Of the dump, in one file of the tar."""
FILES: Final = "files"
CONTENTS: Final = "contents.json"
MAX_CONTENTS_BYTES: Final = 16 * 1024 * 1024
MAX_FILE_BYTES: Final = 8 * 1024 * 1024
"""Of a configuration file."""
CONTENTS_FORMAT: Final = "agentfactory.backup-contents.v1"
MAX_PARTS: Final = 1_000_000
SUFFIX: Final = ".afbackup"

_NAME: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z-bak_[0-9a-f-]{36}\.afbackup")
_PART: Final = re.compile(rf"{DATABASE}/[0-9]{{8}}|{FILES}/[A-Za-z0-9._-]{{1,64}}|contents\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupHeader:
    """What an archive says of itself in plain text, signed."""

    backup_id: BackupId
    installation: InstallationId
    epoch: int
    snapshot_at: datetime
    """Everything that was committed before is in it, by the clock of Postgres."""
    schema: str
    """Revision of the database's schema."""
    postgres: int
    """Major version of the server."""
    recipient: str
    """Digest of the public key that the archive's own key is encrypted for."""
    wrapped_key: str
    """The archive's own key, encrypted (RFC 9180), base64."""

    @property
    def name(self) -> str:
        """Name of the archive where it is kept: names sort as their snapshots."""
        return f"{self.snapshot_at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{self.backup_id}{SUFFIX}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An archive where it is kept."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file in the archive."""

    name: str
    size_bytes: int
    sha256: str


def encode_header(header: BackupHeader) -> bytes:
    """Return the canonical JSON that is signed."""
    return canonical_json(
        {
            "type": HEADER_FORMAT,
            "backup_id": header.backup_id,
            "installation": header.installation,
            "epoch": header.epoch,
            "snapshot_at": time_to_text(header.snapshot_at),
            "schema": header.schema,
            "postgres": header.postgres,
            "recipient": header.recipient,
            "wrapped_key": header.wrapped_key,
        }
    )


def decode_header(payload: bytes) -> BackupHeader:
    """Return what a payload says; whoever decides by it has verified its signature.

    Raises:
        MalformedError, UnknownFieldError: It is none in its one form.
        UnsupportedVersionError: It is of another version.
    """
    said = Fields(parse_canonical(payload, max_bytes=MAX_HEADER_BYTES), "header of a backup")
    if (found := said.text("type")) != HEADER_FORMAT:
        raise UnsupportedVersionError(
            f"the backup is of format {found[:64]!r}, this build reads {HEADER_FORMAT!r}"
        )
    try:
        header = BackupHeader(
            backup_id=parse_id(BACKUP, said.text("backup_id")),
            installation=InstallationId(said.text("installation", max_chars=64)),
            epoch=said.integer("epoch", minimum=1),
            snapshot_at=said.time("snapshot_at"),
            schema=said.text("schema", max_chars=32),
            postgres=said.integer("postgres", minimum=1, maximum=999),
            recipient=said.digest("recipient"),
            wrapped_key=said.text("wrapped_key", max_chars=MAX_WRAPPED_KEY_CHARS),
        )
    except InvalidInputError as error:
        raise MalformedError(f"header of a backup: {error}") from error
    said.end()
    return header


def encode_contents(parts: Sequence[Part]) -> bytes:
    """Return the list that ends an archive."""
    rows = [{"name": one.name, "size_bytes": one.size_bytes, "sha256": one.sha256} for one in parts]
    return canonical_json({"type": CONTENTS_FORMAT, "parts": rows})


def decode_contents(data: bytes) -> tuple[Part, ...]:
    """Return what the list says.

    Raises:
        MalformedError, UnknownFieldError, UnsupportedVersionError: It is none.
    """
    said = Fields(parse_canonical(data, max_bytes=MAX_CONTENTS_BYTES), "contents of a backup")
    if (found := said.text("type")) != CONTENTS_FORMAT:
        raise UnsupportedVersionError(f"the list of contents is of format {found[:64]!r}")
    parts = []
    for one in said.children("parts", max_items=MAX_PARTS):
        part = Part(
            name=one.text("name", max_chars=128),
            size_bytes=one.integer("size_bytes", maximum=PART_BYTES),
            sha256=one.digest("sha256"),
        )
        one.end()
        parts.append(part)
    said.end()
    return tuple(parts)


def is_part(name: str) -> bool:
    """Whether an archive may hold a file of this name."""
    return _PART.fullmatch(name) is not None


def is_archive(name: str) -> bool:
    """Whether a file of this name is an archive; others may lie beside them."""
    return _NAME.fullmatch(name) is not None


def surplus(archives: Sequence[Stored], keep: int) -> list[Stored]:
    """Return all but the newest `keep`, the oldest first.

    Raises:
        InvalidInputError: None would be kept.
    """
    if keep < 1:
        raise InvalidInputError("at least one backup is kept")
    return sorted(archives, key=lambda one: one.name)[:-keep]
