"""Composition root of `agentfactory backup`: the adapters of backups, as the owner of the schema."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from control_plane.audit.store import PostgresAuditStore
from control_plane.backup.directory import DirectoryPlace
from control_plane.backup.ports import ArchivePlace
from control_plane.backup.postgres_tools import Login
from control_plane.backup.s3 import S3Place
from control_plane.backup.service import BackupService
from control_plane.backup.store import PostgresBackupStore
from control_plane.database.engine import PoolBounds, create_engine
from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.installation.store import PostgresInstallationStore
from control_plane.setup import NobodyListens
from shared.clock import Clock, SystemClock, SystemRandom
from shared.errors import SettingsError

_S3: Final = "s3://"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX: Final = re.compile(r"[A-Za-z0-9._/-]{0,512}")
_BOUNDS: Final = PoolBounds(connections=2, statement=timedelta(minutes=30), lock=timedelta(seconds=30))
"""Of a restore: it writes audit entries anew, which are many."""


def archive_place(name: str) -> ArchivePlace:
    """Return the place of a folder, or of ``s3://bucket/prefix``.

    Raises:
        SettingsError: The S3 client is not installed, or the name is none of a bucket.
    """
    if not name.startswith(_S3):
        return DirectoryPlace(Path(name))
    bucket, _, prefix = name.removeprefix(_S3).partition("/")
    if not _BUCKET.fullmatch(bucket) or not _PREFIX.fullmatch(prefix):
        raise SettingsError(f"{name[:80]!r} names no bucket", hint="write s3://bucket or s3://bucket/prefix")
    return S3Place(bucket, prefix.strip("/"))


@asynccontextmanager
async def backup_service(
    owner_database_url: str, programs: Sequence[Path], *, clock: Clock | None = None
) -> AsyncIterator[BackupService]:
    """Give the use cases of backups over a database.

    Raises:
        SettingsError: The database url is none.
    """
    login = Login.of(owner_database_url)
    engine = create_engine(owner_database_url, application="agentfactory-backup", bounds=_BOUNDS)
    database = PostgresDatabase(engine, notifier=NobodyListens())
    try:
        yield BackupService(
            database=database,
            login=login,
            programs=programs,
            store=PostgresBackupStore(),
            installations=PostgresInstallationStore(),
            audit=PostgresAuditStore(database),
            clock=clock or SystemClock(),
            random=SystemRandom(),
        )
    finally:
        await database.close()
