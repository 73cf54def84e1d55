"""Whether a backup is whole and true, without a database: numbered checks over the archive and its dump.

1. The header is signed by whoever may make backups, and for this key (`archive.verified_header`).
2. Every segment is as it was sealed, in its order, to the last (`sealing`).
3. What is inside is a tar in zstd of known files (`archive.ArchiveReader`).
4. The list at its end has the digest of each (`archive.ArchiveReader`).
5. The dump is of the installation and epoch that the header names.
6. Every keyset is signed by the root key, or one to which it handed over, and the newest is of this epoch.
7. Modules are what their digests say (`facts`).
8. Templates are signed by a publisher, 9. policies by a policy key, that a keyset lists or has listed.
10. Receipts and audit entries are what the log's leaves commit to.
11. The leaves make the root that the log has, and its tiles.
12. Every checkpoint of the log is signed by a log key, and of a beginning of these leaves.
13. So is every checkpoint that was kept elsewhere, as far as the backup reaches: else the log is forked.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Final

from control_plane.backup import postgres_tools
from control_plane.backup.archive import ArchiveReader
from control_plane.backup.copy_text import rows
from control_plane.backup.domain import DATABASE, FILES, BackupHeader
from control_plane.backup.facts import WANTED, DumpFacts, LeafRow
from control_plane.backup.tree import GrowingTree
from shared.canonical import parse_strict
from shared.checkpoints import Checkpoint, log_origin, parse_checkpoint, verify_log_signature
from shared.errors import (
    AgentFactoryError,
    EvidenceMismatchError,
    EvidenceMissingError,
    LogForkedError,
    MalformedError,
    RollbackError,
    UnavailableError,
)
from shared.ids import KeyId
from shared.keyset import KeyPurpose
from shared.log_leaf import commitment
from shared.packages import verify_manifest
from shared.policy_bundle import verify_policy
from shared.roots import RootedKeyset, verify_relayed
from shared.signatures import PublicKey
from shared.tiles import TILE_WIDTH

MAX_POLICY_FILES_BYTES: Final = 16 * 1024 * 1024

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How a checkpoint that was kept elsewhere stands to the backup."""

    size: int
    lost: int
    """Leaves that it has and the backup lacks: recorded after the snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBackup:
    """What is known after the last check."""

    header: BackupHeader
    root_key: PublicKey
    keyset: RootedKeyset
    log_size: int
    counts: Mapping[str, int]
    kept: tuple[Kept, ...]
    files: Mapping[str, bytes] = field(repr=False)
    checks: tuple[str, ...] = ()
    dump_bytes: int = 0


def verify_archive(
    archive: ArchiveReader,
    *,
    tools: postgres_tools.PostgresTools,
    root_key: Callable[[Mapping[str, bytes]], PublicKey],
    kept: Sequence[bytes],
    told: Told,
) -> VerifiedBackup:
    """Do checks 2 to 13; `root_key` is told the archive's files, and `kept` are signed notes.

    Raises:
        VerificationError: A check failed; the message has its number. LogForkedError: check 13.
        UnavailableError: pg_restore is not there, or fails.
    """
    with DumpFacts() as facts:
        read = _read(archive, tools, facts)
        told(f"checks 1 to 4: the archive is whole, {read.dump_bytes} bytes of dump")
        judge = _Judge(header=archive.header, facts=facts, root_key=root_key(read.files), told=told)
        keyset = judge.keysets()
        judge.artifacts()
        judge.signatures()
        notes = judge.notes(kept)
        tree = judge.log([note.checkpoint for note in notes])
        places = judge.checkpoints(notes, tree)
        return VerifiedBackup(
            header=archive.header,
            root_key=judge.root_key,
            keyset=keyset,
            log_size=tree.size,
            counts=dict(facts.counts),
            kept=places,
            files=read.files,
            checks=tuple(judge.passed),
            dump_bytes=read.dump_bytes,
        )


@dataclass(slots=True)
class _ReadParts:
    files: dict[str, bytes] = field(default_factory=dict)
    dump_bytes: int = 0


def _read(archive: ArchiveReader, tools: postgres_tools.PostgresTools, facts: DumpFacts) -> _ReadParts:
    """Read the archive once: files are kept, the dump goes through pg_restore into the facts."""
    read, broken = _ReadParts(), list[BaseException]()

    def feed(dump: IO[bytes]) -> None:
        try:
            feed_dump(archive, dump, read.files)
        except BrokenPipeError:
            """pg_restore has ended; what it says is told by `as_text`."""
        except BaseException as error:  # noqa: BLE001 - raised by whoever reads
            broken.append(error)
        finally:
            dump.close()

    try:
        with postgres_tools.as_text(tools) as (dump, text):
            thread = threading.Thread(target=feed, args=(dump,), daemon=True)
            thread.start()
            for table, row in rows(text, WANTED):
                facts.add(table, row)
            thread.join()
    except (UnavailableError, MalformedError, OSError, ValueError):
        # An archive that breaks off breaks the dump too: the first cause is what is told.
        if broken:
            raise broken[0] from None
        raise
    if broken:
        raise broken[0]
    read.dump_bytes = archive.dump_bytes
    return read


def feed_dump(archive: ArchiveReader, dump: IO[bytes], files: dict[str, bytes]) -> None:
    """Write the dump's parts where they are taken, in their order, and gather the files.

    Raises:
        VerificationError: As `ArchiveReader.parts`.
        BrokenPipeError: It is not taken any more.
    """
    number = 0
    for name, content in archive.parts():
        folder, _, rest = name.partition("/")
        if folder == FILES:
            files[rest] = content
        elif name == f"{DATABASE}/{number:08}":
            dump.write(content)
            archive.dump_bytes += len(content)
            number += 1
        else:
            raise MalformedError(f"check 3: {name} is out of order")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    checkpoint: Checkpoint
    is_kept: bool


@dataclass(slots=True, kw_only=True)
class _Judge:
    """Checks 5 to 13 over what was gathered."""

    header: BackupHeader
    facts: DumpFacts
    root_key: PublicKey
    told: Told
    passed: list[str] = field(default_factory=list)
    _rooted: list[RootedKeyset] = field(default_factory=list)

    def keysets(self) -> RootedKeyset:
        """Checks 5 and 6."""
        facts, header = self.facts, self.header
        if (facts.installation, facts.epoch) != (header.installation, header.epoch):
            raise EvidenceMismatchError(
                f"check 5: the dump is of {facts.installation!r}, epoch {facts.epoch};"
                f" the header names {header.installation!r}, epoch {header.epoch}"
            )
        if not facts.keysets:
            raise EvidenceMissingError("check 6: the dump holds no keyset")
        roots = {self.root_key.key_id: self.root_key}
        for version in sorted(facts.keysets):
            with _check(6, f"keyset {version}"):
                found = self._keyset(version, roots)
            self._rooted.append(found)
        newest = self._rooted[-1]
        if newest.keyset.epoch != header.epoch:
            raise EvidenceMismatchError(
                f"check 6: keyset {newest.keyset.version} is of epoch {newest.keyset.epoch},"
                f" the installation of {header.epoch}"
            )
        self._pass(
            f"checks 5 and 6: {len(self._rooted)} keysets lead from root key {self.root_key.key_id[:19]}"
        )
        return newest

    def _keyset(self, version: int, roots: Mapping[KeyId, PublicKey]) -> RootedKeyset:
        found = verify_relayed(
            self.facts.keysets[version],
            root_keys=roots,
            minimum_version=version,
            installation=self.header.installation,
        )
        if found.keyset.version != version:
            raise RollbackError(f"it says that it is version {found.keyset.version}")
        return found

    def artifacts(self) -> None:
        """Check 7 was done row by row."""
        self._pass(f"check 7: {self.facts.artifacts} modules are what their digests say")

    def signatures(self) -> None:
        """Checks 8 and 9."""
        templates = policies = 0
        publishers, deciders = self._listed(KeyPurpose.PUBLISHER), self._listed(KeyPurpose.POLICY)
        for digest, envelope in self.facts.templates():
            with _check(8, f"template {digest}"):
                signed = verify_manifest(envelope, publisher_keys=publishers)
                if signed.digest != digest:
                    raise EvidenceMismatchError(f"its digest is {signed.digest}")
            templates += 1
        for digest, version, envelope, files in self.facts.policies():
            if not version:
                continue  # came with a control plane and is signed by nobody
            with _check(9, f"policy {digest}"):
                texts = parse_strict(files, max_bytes=MAX_POLICY_FILES_BYTES)
                contents = {path: str(text).encode() for path, text in texts.items()}
                if verify_policy(envelope, contents, keys=deciders).digest != digest:
                    raise EvidenceMismatchError("its digest is another one")
            policies += 1
        self._pass(f"checks 8 and 9: {templates} templates and {policies} policies are signed")

    def notes(self, kept: Sequence[bytes]) -> list[_Note]:
        """Return the checkpoints of the backup and those that were kept, with their signatures verified."""
        keys = list(self._listed(KeyPurpose.LOG).values())
        origins = {log_origin(self.header.installation, epoch) for epoch in range(1, self.header.epoch + 1)}
        found = []
        for number, data, is_kept in (
            *((12, note, False) for note in self.facts.checkpoints),
            *((13, note, True) for note in kept),
        ):
            with _check(number, "checkpoint"):
                signed = parse_checkpoint(data)
                if signed.checkpoint.origin not in origins:
                    raise EvidenceMismatchError(f"it is of log {signed.checkpoint.origin!r}")
                verify_log_signature(signed, origin=signed.checkpoint.origin, keys=keys)
            found.append(_Note(checkpoint=signed.checkpoint, is_kept=is_kept))
        return found

    def log(self, wanted: Sequence[Checkpoint]) -> GrowingTree:
        """Checks 10 and 11."""
        tree, said, edge = GrowingTree(frozenset(one.size for one in wanted)), 0, bytearray()
        for leaf in self.facts.leaves():
            if leaf.place != tree.size:
                raise EvidenceMissingError(f"check 11: leaf {tree.size} of the log is missing")
            said += _require_said(leaf)
            edge += tree.add(leaf.commitment)
            if tree.size % TILE_WIDTH == 0:
                self._require_tile(tree.size // TILE_WIDTH - 1, bytes(edge))
                edge.clear()
        if edge:
            self._require_tile(tree.size // TILE_WIDTH, bytes(edge))
        size, root = self.facts.head or (0, tree.root)
        if (size, root) != (tree.size, tree.root):
            raise EvidenceMismatchError(
                f"check 11: the log's head is of {size} leaves, the {tree.size} found do not make its root"
            )
        if self.facts.tiles != tree.tiles() or self.facts.leaf_tiles() != -(-tree.size // TILE_WIDTH):
            raise EvidenceMismatchError("check 11: the log's tiles are not those of its leaves")
        self._pass(f"checks 10 and 11: {tree.size} leaves make the log's root, {said} speak of what is here")
        return tree

    def _require_tile(self, place: int, hashes: bytes) -> None:
        if self.facts.leaf_tile(place) != hashes:
            raise EvidenceMismatchError(f"check 11: tile 0/{place} of the log is not of its leaves")

    def checkpoints(self, notes: Sequence[_Note], tree: GrowingTree) -> tuple[Kept, ...]:
        """Checks 12 and 13."""
        places = []
        for note in notes:
            size, root = note.checkpoint.size, note.checkpoint.root
            if note.is_kept:
                places.append(Kept(size=size, lost=max(0, size - tree.size)))
            if size <= tree.size:
                if tree.roots[size] != root:
                    raise LogForkedError(
                        f"check {12 + note.is_kept}: the backup's first {size} leaves are not those of the"
                        " checkpoint: there are two logs",
                        hint="do not restore it; find out which of the two others have seen",
                    )
            elif not note.is_kept:
                raise EvidenceMismatchError(
                    f"check 12: a checkpoint has {size} leaves, the backup's log {tree.size}"
                )
        self._pass(
            f"checks 12 and 13: {len(notes)} checkpoints are of these leaves, {len(places)} kept elsewhere"
        )
        return tuple(places)

    def _listed(self, purpose: KeyPurpose) -> dict[KeyId, PublicKey]:
        """Whatever a keyset lists or has listed: what it signed was taken while it counted."""
        return {
            entry.key_id: entry.key
            for rooted in self._rooted
            for entry in rooted.keyset.entries
            if entry.purpose is purpose
        }

    def _pass(self, line: str) -> None:
        self.passed.append(line)
        self.told(line)


def _require_said(leaf: LeafRow) -> bool:
    """Check 10 for one leaf; False: the backup does not hold what it is about any more."""
    if leaf.content is None:
        return False
    said = commitment(kind=leaf.kind, subject=leaf.subject, salt=leaf.salt, content=leaf.content)
    if said != leaf.commitment:
        raise EvidenceMismatchError(
            f"check 10: {leaf.kind} {leaf.subject} is not what leaf {leaf.place} of the log says"
        )
    return True


class _check:  # noqa: N801 - reads as a statement
    """Put the number of the check, and what it was about, before what failed."""

    def __init__(self, number: int, about: str) -> None:
        self._about = f"check {number}: {about}"

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, AgentFactoryError):
            raise type(error)(f"{self._about}: {error}", hint=error.hint) from error
