"""What a dump says that a backup is judged by, gathered row by row in a file: memory stays bounded.

Knows columns of tables, and nothing of keys; `verification.py` judges.
"""

import hashlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from control_plane.backup.copy_text import Row, binary, number, text_of
from shared.errors import EvidenceMismatchError, MalformedError
from shared.log_leaf import LeafKind, audit_content
from shared.merkle import HASH_BYTES
from shared.tiles import TileId

_COMMIT_EVERY: Final = 20_000
MAX_KEYSETS: Final = 100_000
MAX_TILES: Final = 4_000_000

_SCHEMA: Final = """
CREATE TABLE leaf (subject TEXT PRIMARY KEY, place INTEGER NOT NULL, kind TEXT NOT NULL, salt BLOB NOT NULL,
    commitment BLOB NOT NULL) WITHOUT ROWID;
CREATE UNIQUE INDEX leaf_place ON leaf (place);
CREATE TABLE said (subject TEXT NOT NULL, kind TEXT NOT NULL, content BLOB NOT NULL);
CREATE TABLE template (digest TEXT NOT NULL, envelope BLOB NOT NULL);
CREATE TABLE policy (digest TEXT NOT NULL, version INTEGER NOT NULL, envelope BLOB NOT NULL,
    files BLOB NOT NULL);
CREATE TABLE leaf_tile (place INTEGER PRIMARY KEY, hashes BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafRow:
    """A leaf of the log, and what is said to be there: None, nothing of the backup says it any more."""

    place: int
    kind: str
    subject: str
    salt: bytes
    commitment: bytes
    content: bytes | None


@dataclass(slots=True)
class DumpFacts:
    """Gathers; use as a context, the file goes with it."""

    installation: str = ""
    epoch: int = 0
    head: tuple[int, bytes] | None = None
    keysets: dict[int, bytes] = field(default_factory=dict)
    checkpoints: list[bytes] = field(default_factory=list)
    tiles: dict[TileId, bytes] = field(default_factory=dict)
    artifacts: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    _folder: "tempfile.TemporaryDirectory[str]" = field(init=False)
    _base: sqlite3.Connection = field(init=False)
    _waiting: int = 0

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="agentfactory-verify-")
        self._base = sqlite3.connect(Path(self._folder.name) / "facts", check_same_thread=False)
        self._base.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;{_SCHEMA}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._base.close()
        self._folder.cleanup()

    def add(self, table: str, row: Row) -> None:
        """Take one row.

        Raises:
            MalformedError: It is not as this build's schema has it.
            EvidenceMismatchError: An artifact or receipt is not what its digest says.
        """
        try:
            _TAKES[table](self, row)
        except (KeyError, UnicodeDecodeError, sqlite3.IntegrityError) as error:
            raise MalformedError(f"a row of {table} in the dump is not as it should be: {error}") from error
        self.counts[table] = self.counts.get(table, 0) + 1
        self._waiting += 1
        if self._waiting % _COMMIT_EVERY == 0:
            self._base.commit()

    def leaves(self) -> Iterator[LeafRow]:
        """Yield the log in its order."""
        query = """SELECT l.place, l.kind, l.subject, l.salt, l.commitment, s.content
            FROM leaf l LEFT JOIN said s ON s.subject = l.subject AND s.kind = l.kind ORDER BY l.place"""
        self._base.execute("CREATE INDEX IF NOT EXISTS said_subject ON said (subject)")
        for place, kind, subject, salt, commitment, content in self._base.execute(query):
            yield LeafRow(
                place=place, kind=kind, subject=subject, salt=salt, commitment=commitment, content=content
            )

    def leaf_tile(self, place: int) -> bytes:
        """Return a tile of the leaves' hashes; empty: there is none."""
        found = self._base.execute("SELECT hashes FROM leaf_tile WHERE place = ?", (place,)).fetchone()
        return b"" if found is None else bytes(found[0])

    def leaf_tiles(self) -> int:
        """Return how many there are."""
        return int(self._base.execute("SELECT count(*) FROM leaf_tile").fetchone()[0])

    def templates(self) -> Iterator[tuple[str, bytes]]:
        """Yield digest and envelope of each template version."""
        yield from self._base.execute("SELECT digest, envelope FROM template")

    def policies(self) -> Iterator[tuple[str, int, bytes, bytes]]:
        """Yield digest, version, envelope and files of each policy."""
        yield from self._base.execute("SELECT digest, version, envelope, files FROM policy")

    # --- one table each

    def _say(self, kind: LeafKind, subject: str, content: bytes) -> None:
        self._base.execute("INSERT INTO said VALUES (?, ?, ?)", (subject, str(kind), content))

    def _installation(self, row: Row) -> None:
        self.installation, self.epoch = text_of(row["installation"]), number(row["epoch"])

    def _head(self, row: Row) -> None:
        self.head = number(row["tree_size"]), binary(row["root"])

    def _leaf(self, row: Row) -> None:
        self._base.execute(
            "INSERT INTO leaf VALUES (?, ?, ?, ?, ?)",
            (
                text_of(row["subject"]),
                number(row["log_index"]),
                text_of(row["kind"]),
                binary(row["salt"]),
                binary(row["commitment"]),
            ),
        )

    def _tile(self, row: Row) -> None:
        hashes = binary(row["hashes"])
        if len(hashes) % HASH_BYTES or len(self.tiles) > MAX_TILES:
            raise MalformedError("a tile of the dump is not of hashes, or there are too many")
        if number(row["level"]) == 0:
            values = number(row["tile_index"]), hashes
            self._base.execute("INSERT INTO leaf_tile VALUES (?, ?)", values)
            return
        self.tiles[TileId(number(row["level"]), number(row["tile_index"]))] = hashes

    def _checkpoint(self, row: Row) -> None:
        self.checkpoints.append(binary(row["note"]))

    def _keyset(self, row: Row) -> None:
        envelope, version = binary(row["envelope"]), number(row["version"])
        if len(self.keysets) >= MAX_KEYSETS:
            raise MalformedError(f"the dump holds more than {MAX_KEYSETS} keysets")
        self.keysets[version] = envelope
        self._say(LeafKind.KEYSET, f"keyset/{version}", hashlib.sha256(envelope).digest())

    def _artifact(self, row: Row) -> None:
        digest = f"sha256:{hashlib.sha256(binary(row['module'])).hexdigest()}"
        if digest != text_of(row["module_digest"]):
            raise EvidenceMismatchError(
                f"check 7: module {text_of(row['module_digest'])} is stored as {digest}"
            )
        self.artifacts += 1

    def _template(self, row: Row) -> None:
        digest, envelope = text_of(row["digest"]), binary(row["envelope"])
        self._base.execute("INSERT INTO template VALUES (?, ?)", (digest, envelope))
        subject = f"{text_of(row['tenant_id'])}/{digest}"
        self._say(LeafKind.TEMPLATE, subject, bytes.fromhex(digest.removeprefix("sha256:")))

    def _policy(self, row: Row) -> None:
        values = text_of(row["digest"]), number(row["version"]), binary(row["envelope"]), binary(row["files"])
        self._base.execute("INSERT INTO policy VALUES (?, ?, ?, ?)", values)

    def _policy_used(self, row: Row) -> None:
        digest = text_of(row["digest"])
        self._say(LeafKind.POLICY, digest, bytes.fromhex(digest.removeprefix("sha256:")))

    def _receipt(self, row: Row) -> None:
        named = hashlib.sha256(binary(row["envelope"])).digest()
        if named != binary(row["hash"]):
            raise EvidenceMismatchError(f"check 10: receipt {text_of(row['receipt_id'])} is not of its hash")
        self._say(LeafKind.RECEIPT, text_of(row["receipt_id"]), named)

    def _audit_entry(self, row: Row) -> None:
        content = audit_content(
            audit_entry_id=text_of(row["audit_entry_id"]),
            tenant_id=text_of(row["tenant_id"]),
            actor=text_of(row["actor"]),
            action=text_of(row["action"]),
            subject=text_of(row["subject"]),
            result=text_of(row["result"]),
            recorded_at=_time(text_of(row["recorded_at"])),
            details=text_of(row["details"]),
        )
        self._say(LeafKind.AUDIT_ENTRY, text_of(row["audit_entry_id"]), content)


def _time(said: str) -> datetime:
    try:
        return datetime.fromisoformat(said)
    except ValueError as error:
        raise MalformedError(f"{said[:40]!r} in the dump is no time") from error


_TAKES: Final[Mapping[str, Callable[[DumpFacts, Row], None]]] = {
    "installation": DumpFacts._installation,  # noqa: SLF001 - its own table of methods
    "log_head": DumpFacts._head,  # noqa: SLF001
    "log_entries": DumpFacts._leaf,  # noqa: SLF001
    "log_tiles": DumpFacts._tile,  # noqa: SLF001
    "log_checkpoints": DumpFacts._checkpoint,  # noqa: SLF001
    "log_past_checkpoints": DumpFacts._checkpoint,  # noqa: SLF001
    "keysets": DumpFacts._keyset,  # noqa: SLF001
    "artifacts": DumpFacts._artifact,  # noqa: SLF001
    "template_versions": DumpFacts._template,  # noqa: SLF001
    "policy_bundles": DumpFacts._policy,  # noqa: SLF001
    "policies_used": DumpFacts._policy_used,  # noqa: SLF001
    "receipts": DumpFacts._receipt,  # noqa: SLF001
    "audit_entries": DumpFacts._audit_entry,  # noqa: SLF001
}
WANTED: Final = frozenset(_TAKES)
