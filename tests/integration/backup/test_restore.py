"""A backup and its restore over real servers of both versions, as an owner that is no superuser."""

from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from control_plane.backup.directory import DirectoryPlace
from control_plane.backup.keys import read_create_key, read_restore_key, write_keys
from control_plane.backup.service import BackupService, Successor, unsigned_relayed, verify_backup
from control_plane.backup.store import SERVICE_ROLES, BackupAge
from control_plane.database.engine import create_engine
from control_plane.database.unit_of_work import DISPATCH_ROLE, PostgresDatabase
from control_plane.installation.domain import InitRequest
from control_plane.setup import NobodyListens, initialize
from control_plane.setup_backup import backup_service
from shared.errors import ConflictError, InvalidInputError, RollbackError
from shared.key_files import read_private_key, read_public_key
from shared.keyset import sign_keyset
from shared.paths import InstallationPaths
from shared.signatures import FileSigner


async def ask(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def signed(paths: InstallationPaths, successor: Successor) -> bytes:
    root = FileSigner(key=read_private_key(paths.root_key))
    return unsigned_relayed(successor, await sign_keyset(successor.keyset, [root]))


async def restored(service: BackupService, place: DirectoryPlace, name: str, folder: Path, programs: Path):
    paths, key = InstallationPaths(data_dir=folder), read_restore_key(folder / "restore.key")
    verified = await verify_backup(
        place,
        name,
        key,
        programs=[programs],
        root=lambda _: read_public_key(paths.root_public_key),
        kept=(),
        told=lambda _: None,
    )
    await service.load(place, name, key, verified)


async def test_rule_16_a_restore_begins_another_epoch_and_lets_the_service_in_only_then(
    owner_url: str, database_url: str, empty_url: str, postgres_server, tmp_path: Path
) -> None:
    programs, paths = postgres_server.binaries, InstallationPaths(data_dir=tmp_path)
    await initialize(InitRequest(data_dir=tmp_path, owner_database_url=owner_url))
    write_keys(tmp_path / "create.key", tmp_path / "restore.key")
    place, maker = DirectoryPlace(tmp_path / "backups"), read_create_key(tmp_path / "create.key")
    async with backup_service(owner_url, [programs]) as service:
        names = [
            (await service.create(place, maker, files={}, keep=2, told=lambda _: None)).header.name
            for _ in range(3)
        ]
        with pytest.raises(ConflictError, match="not empty"):
            await service.require_empty()
    assert [one.name for one in place.all()] == names[:0:-1]
    assert await ask(owner_url, "SELECT count(*) FROM backups") == 2

    engine = create_engine(database_url, application="test", role=DISPATCH_ROLE)
    database = PostgresDatabase(engine, notifier=NobodyListens())
    try:
        assert timedelta(0) < await BackupAge(database).age() < timedelta(minutes=5)
    finally:
        await database.close()

    as_service = empty_url.replace("af_owner@", "af_service@")
    async with backup_service(empty_url, [programs]) as service:
        await restored(service, place, names[-1], tmp_path, programs)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await ask(as_service, "SELECT 1")
        given = paths.keyset.read_bytes()
        successor = await service.successor(given, read_public_key(paths.root_public_key))
        with pytest.raises(RollbackError):
            await service.begin(successor, given, details={})
        begun = await service.begin(successor, await signed(paths, successor), details={"why": "a drill"})
        # An older keyset than the one in force would take revocations back.
        with pytest.raises(InvalidInputError, match="newer"):
            await service.successor(given, read_public_key(paths.root_public_key))
        again = await service.successor(begun.envelope, read_public_key(paths.root_public_key))
    assert (begun.epoch, begun.keyset_version, again.keyset.epoch) == (2, 2, 3)
    assert await ask(empty_url, "SELECT epoch FROM installation") == 2
    assert await ask(as_service, "SELECT max(version) FROM keysets") == 2
    assert await ask(empty_url, "SELECT count(*) FROM audit_entries WHERE action LIKE 'installation.%'") == 2
    roles = await ask(
        empty_url,
        "SELECT array_agg(rolname::text) FROM pg_roles WHERE rolname ~ '^af_' AND rolname <> 'af_owner'",
    )
    assert set(roles) == set(SERVICE_ROLES)
