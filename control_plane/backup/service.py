"""Makes, lists, verifies and restores backups, and begins the epoch after a restore. As the schema's owner.

Serves nothing. Archives are streamed in threads: no step holds more than a part of one in memory.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from control_plane.audit.domain import SYSTEM_ACTOR, NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.backup import postgres_tools
from control_plane.backup.archive import (
    ArchiveReader,
    ArchiveWriter,
    claimed_header,
    new_header,
    read_envelope,
    verified_header,
)
from control_plane.backup.domain import BACKUP, BackupHeader, Stored, surplus
from control_plane.backup.epochs import next_epoch, require_next_epoch
from control_plane.backup.keys import CreateKey, RestoreKey
from control_plane.backup.ports import ArchivePlace, BackupStore
from control_plane.backup.postgres_tools import Login, PostgresTools, find_tools
from control_plane.backup.verification import Told, VerifiedBackup, feed_dump, verify_archive
from control_plane.database.ports import Database, Transaction
from control_plane.installation.domain import DEFAULT_TENANT
from control_plane.installation.ports import InstallationStore, SigningKey, StoredKeyset
from shared.clock import Clock, Random
from shared.errors import AgentFactoryError, EvidenceMismatchError, InvalidInputError, NotFoundError
from shared.ids import AUDIT_ENTRY, InstallationId, new_id
from shared.keyset import Keyset
from shared.roots import RelayedKeyset, RootedKeyset, encode_relayed, verify_relayed
from shared.signatures import PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A backup that was made."""

    header: BackupHeader
    size_bytes: int
    dump_bytes: int
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A backup in a list: nothing that its header says is verified, unless a key was given."""

    stored: Stored
    header: BackupHeader | None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Successor:
    """The keyset that begins another epoch, before it is signed."""

    newest: RootedKeyset
    keyset: Keyset


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """An epoch that has begun."""

    installation: InstallationId
    epoch: int
    keyset_version: int
    envelope: bytes = field(repr=False)
    """The keyset as it is relayed."""


class BackupService:
    """The use cases of `agentfactory backup`. `Offline` holds those that need no database."""

    def __init__(
        self,
        *,
        database: Database,
        login: Login,
        programs: Sequence[Path],
        store: BackupStore,
        installations: InstallationStore,
        audit: AuditLog,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._login = login
        self._programs = programs
        self._store = store
        self._installations = installations
        self._audit = audit
        self._clock = clock
        self._random = random

    async def create(
        self,
        place: ArchivePlace,
        key: CreateKey,
        *,
        files: dict[str, bytes],
        keep: int | None,
        told: Told,
    ) -> Made:
        """Copy the database and these files into a new archive, beside a running service.

        Archives beyond the newest `keep` are removed once the new one is there.

        Raises:
            NotFoundError: The database holds no installation.
            UnavailableError: pg_dump or the place fails; no archive is left.
        """
        if keep is not None:
            surplus((), keep)
        async with self._database.transaction() as tx:
            facts = await self._store.facts(tx)
        tools = await asyncio.to_thread(find_tools, self._programs, facts.postgres)
        header = BackupHeader(
            backup_id=new_id(BACKUP, self._clock, self._random),
            installation=facts.installation,
            epoch=facts.epoch,
            snapshot_at=facts.now,
            schema=facts.schema,
            postgres=facts.postgres,
            recipient="",
            wrapped_key="",
        )
        told(f"copying {facts.installation}, epoch {facts.epoch}, to {place.name}")
        dump_bytes = await asyncio.to_thread(self._write, place, key, header, files, tools)
        size_bytes, removed = await self._keep(place, header, keep)
        return Made(header=header, size_bytes=size_bytes, dump_bytes=dump_bytes, removed=removed)

    async def _keep(
        self, place: ArchivePlace, header: BackupHeader, keep: int | None
    ) -> tuple[int, tuple[str, ...]]:
        """Remove what is too much now that a new one is there, and put both on record."""
        stored = await asyncio.to_thread(place.all)
        size_bytes = next((one.size_bytes for one in stored if one.name == header.name), 0)
        names: list[str] = []
        if keep is not None:
            mine = await asyncio.to_thread(_of, place, stored, header.installation)
            names = [one.name for one in surplus(mine, keep)]
        for name in names:
            await asyncio.to_thread(place.remove, name)
        async with self._database.transaction() as tx:
            await self._store.record(tx, header, place=place.name, size_bytes=size_bytes)
            await self._store.forget(tx, names, place=place.name)
            details: dict[str, str | int] = {
                "name": header.name,
                "place": place.name,
                "size_bytes": size_bytes,
                "removed": len(names),
            }
            await self._record(tx, "backup.created", header.backup_id, details)
        return size_bytes, tuple(names)

    def _write(
        self,
        place: ArchivePlace,
        key: CreateKey,
        header: BackupHeader,
        files: dict[str, bytes],
        tools: PostgresTools,
    ) -> int:
        new = new_header(header, key, self._random)
        with place.writing(header.name) as below:
            writer = ArchiveWriter(below, new=new, maker=key)
            try:
                for name, data in sorted(files.items()):
                    writer.add_file(name, data)
                with postgres_tools.dumping(tools, self._login) as dump:
                    dump_bytes = writer.add_database(dump)
                writer.finish()
            except BaseException:
                writer.abort()
                raise
        return dump_bytes

    async def require_empty(self) -> int:
        """Return the server's major version if nothing is in the database.

        Raises:
            ConflictError: Something is.
        """
        async with self._database.transaction() as tx:
            await self._store.require_empty(tx)
            return await self._store.server(tx)

    async def load(self, place: ArchivePlace, name: str, key: RestoreKey, verified: VerifiedBackup) -> None:
        """Load a backup that was verified into the empty database; the service stays shut out until `begin`.

        Raises:
            ConflictError: The database is not empty.
            EvidenceMismatchError: The archive is not the one that was verified.
            SettingsError: This role does not own the database.
            UnavailableError: pg_restore fails; nothing was loaded.
        """
        async with self._database.transaction() as tx:
            await self._store.require_empty(tx)
            server = await self._store.server(tx)
            await self._store.close_doors(tx)
        tools = await asyncio.to_thread(find_tools, self._programs, max(server, verified.header.postgres))
        await asyncio.to_thread(self._load, place, name, key, verified.header, tools)

    def _load(
        self, place: ArchivePlace, name: str, key: RestoreKey, header: BackupHeader, tools: PostgresTools
    ) -> None:
        with place.reading(name) as below:
            read = verified_header(read_envelope(below), key)
            if read.header != header:
                raise EvidenceMismatchError(f"{name} is another archive than the one that was verified")
            archive = ArchiveReader(below, read=read, key=key)
            with postgres_tools.loading(tools, self._login) as dump:
                feed_dump(archive, dump, {})
                dump.close()

    async def successor(self, given: bytes, root: PublicKey) -> Successor:
        """Return the keyset by which the next epoch of this database begins; `given` is the newest there is.

        Raises:
            VerificationError: The given one, or the database's, is not by the root key or who followed it.
            InvalidInputError: The database has a newer one than was given, or another of its version.
        """
        async with self._database.transaction() as tx:
            facts = await self._store.facts(tx)
            stored = await self._installations.newest_keyset(tx)
        return next_of(
            given, stored, root=root, installation=facts.installation, epoch=facts.epoch, now=self._clock
        )

    async def begin(self, successor: Successor, envelope: bytes, *, details: dict[str, str | int]) -> Begun:
        """Begin another epoch with a keyset that the root key signed: in one transaction, or not at all.

        Raises:
            VerificationError: The root in force did not sign it; RollbackError: it begins no later epoch.
            ConflictError: Its version exists already.
        """
        async with self._database.transaction() as tx:
            facts = await self._store.facts(tx)
            found = verify_relayed(
                envelope,
                root_keys=successor.newest.root_keys,
                minimum_version=successor.newest.keyset.version,
                installation=facts.installation,
                held=successor.newest.relayed.handovers,
            )
            require_next_epoch(successor.newest.keyset, found.keyset, epoch=facts.epoch)
            stored = await self._installations.newest_keyset(tx)
            for one in (successor.newest, found):
                if stored is None or one.keyset.version > stored.version:
                    await self._add_keyset(tx, one)
            await self._store.begin_epoch(tx, found.keyset.epoch)
            said = {"keyset": found.keyset.version, "before": facts.epoch, **details}
            await self._record(tx, "installation.epoch_began", str(found.keyset.epoch), said)
        return Begun(
            installation=facts.installation,
            epoch=found.keyset.epoch,
            keyset_version=found.keyset.version,
            envelope=encode_relayed(found.relayed),
        )

    async def _add_keyset(self, tx: Transaction, rooted: RootedKeyset) -> None:
        envelope = encode_relayed(rooted.relayed)
        await self._installations.add_keyset(
            tx, StoredKeyset(version=rooted.keyset.version, envelope=envelope)
        )
        for entry in rooted.keyset.entries:
            key = SigningKey(key_id=entry.key_id, purpose=entry.purpose, spki_der=entry.key.spki_der)
            await self._installations.add_key(tx, key)

    async def _record(
        self, tx: Transaction, action: str, subject: str, details: dict[str, str | int]
    ) -> None:
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=DEFAULT_TENANT,
            actor=SYSTEM_ACTOR,
            action=action,
            subject=subject,
            details=details,
        )
        await self._audit.append(tx, [entry])


def next_of(
    given: bytes,
    stored: StoredKeyset | None,
    *,
    root: PublicKey,
    installation: InstallationId,
    epoch: int,
    now: Clock,
) -> Successor:
    """Return the keyset after the one that is given. Raises as `BackupService.successor`."""
    newest = verify_relayed(
        given, root_keys={root.key_id: root}, minimum_version=1, installation=installation
    )
    version = newest.keyset.version
    if stored is not None and stored.version > version:
        raise InvalidInputError(
            f"the backup holds keyset {stored.version}, which is newer than {version}, the one given",
            hint="give the newest keyset that was ever signed: nodes take no older one",
        )
    if stored is not None and stored.version == version:
        held = verify_relayed(
            stored.envelope, root_keys={root.key_id: root}, minimum_version=1, installation=installation
        )
        if held.keyset != newest.keyset:
            raise InvalidInputError(f"there are two keysets of version {version}: find out which is in force")
    return Successor(newest=newest, keyset=next_epoch(newest.keyset, epoch=epoch, now=now.now()))


def unsigned_relayed(successor: Successor, envelope: bytes) -> bytes:
    """Return a keyset's envelope with the handovers that lead to its root."""
    return encode_relayed(RelayedKeyset(envelope=envelope, handovers=successor.newest.relayed.handovers))


async def list_backups(place: ArchivePlace, *, after: str, limit: int) -> tuple[list[Listed], bool]:
    """Return a page of backups, newest first, behind a name; and whether there are more.

    Raises:
        UnavailableError: The place does not answer.
    """
    stored = [one for one in await asyncio.to_thread(place.all) if not after or one.name < after]
    page = [await asyncio.to_thread(_look, place, one) for one in stored[:limit]]
    return page, len(stored) > limit


def _of(place: ArchivePlace, stored: Sequence[Stored], installation: InstallationId) -> list[Stored]:
    """Return those of an installation: others may use the place too; what cannot be read is left alone."""
    looked = [_look(place, one) for one in stored]
    return [one.stored for one in looked if one.header and one.header.installation == installation]


def _look(place: ArchivePlace, stored: Stored) -> Listed:
    try:
        with place.reading(stored.name) as below:
            return Listed(stored=stored, header=claimed_header(read_envelope(below)))
    except AgentFactoryError as error:
        return Listed(stored=stored, header=None, problem=str(error))


async def verify_backup(
    place: ArchivePlace,
    name: str,
    key: RestoreKey,
    *,
    programs: Sequence[Path],
    root: Callable[[Mapping[str, bytes]], PublicKey],
    kept: Sequence[bytes],
    told: Told,
) -> VerifiedBackup:
    """Do every check over a backup, without a database.

    Raises:
        VerificationError: A check failed; the message has its number.
        NotFoundError, UnavailableError: The archive cannot be read, or pg_restore not run.
    """

    def work() -> VerifiedBackup:
        with place.reading(name) as below:
            read = verified_header(read_envelope(below), key)
            told(
                f"check 1: {read.header.backup_id} of {read.header.installation} is signed, and for this key"
            )
            tools = find_tools(programs, read.header.postgres)
            archive = ArchiveReader(below, read=read, key=key)
            return verify_archive(archive, tools=tools, root_key=root, kept=kept, told=told)

    return await asyncio.to_thread(work)


def newest_name(place: ArchivePlace, name: str) -> str:
    """Return the archive that is meant: by its name, or the newest for `latest`.

    Raises:
        NotFoundError: There is none.
    """
    if name != "latest":
        return name
    stored = place.all()
    if not stored:
        raise NotFoundError("there is no backup here", hint="make one: agentfactory backup create")
    return max(one.name for one in stored)
