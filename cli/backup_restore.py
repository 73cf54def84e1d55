"""The way of a restore: verify, sign, load, begin the epoch, put files back. Loading is the first change."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cli import output
from cli.backups import database_to_fill, programs, put_back, signed_epoch
from cli.settings import CliSettings
from control_plane.backup.domain import BackupHeader
from control_plane.backup.keys import read_restore_key
from control_plane.backup.ports import ArchivePlace
from control_plane.backup.service import BackupService, Begun, Successor, newest_name, next_of, verify_backup
from control_plane.backup.verification import VerifiedBackup
from control_plane.database.migrate import newest_revision, upgrade
from control_plane.installation.ports import StoredKeyset
from control_plane.setup_backup import backup_service
from shared.clock import SystemClock
from shared.errors import SettingsError
from shared.paths import InstallationPaths
from shared.roots import encode_relayed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shared.signatures import PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """One restore, as it was asked for."""

    settings: CliSettings
    place: ArchivePlace
    name: str
    key: Path
    keyset: bytes = field(repr=False)
    epoch_keyset: Path | None
    root: "Callable[[Mapping[str, bytes]], PublicKey]"
    kept: list[bytes]

    async def run(self, database_url: str | None) -> tuple[Begun, VerifiedBackup, list[str]]:
        """Return the epoch that has begun, what was verified, and the files that were written.

        Raises:
            ConflictError: The database is not empty.
            VerificationError: The backup, or a keyset, is not what it must be; nothing was loaded.
            WrongStateError: The root key is not here, and no keyset for the epoch was given.
        """
        settings, paths = self.settings, InstallationPaths(data_dir=self.settings.data_dir)
        name = newest_name(self.place, self.name)
        async with (
            database_to_fill(settings, database_url) as url,
            backup_service(url, programs(settings)) as service,
        ):
            await service.require_empty()
            verified = await verify_backup(
                self.place,
                name,
                read_restore_key(self.key),
                programs=programs(settings),
                root=self.root,
                kept=self.kept,
                told=output.note,
            )
            _require_known(verified.header)
            successor = self._successor(verified)
            signed = await signed_epoch(paths, successor, self.epoch_keyset)
            begun = await self._load(service, url, name, verified, successor, signed)
        return begun, verified, put_back(paths, verified.files, verified.root_key, begun.envelope)

    def _successor(self, verified: VerifiedBackup) -> Successor:
        held = verified.keyset
        return next_of(
            self.keyset,
            StoredKeyset(version=held.keyset.version, envelope=encode_relayed(held.relayed)),
            root=verified.root_key,
            installation=verified.header.installation,
            epoch=verified.header.epoch,
            now=SystemClock(),
        )

    async def _load(
        self,
        service: BackupService,
        url: str,
        name: str,
        verified: VerifiedBackup,
        successor: Successor,
        signed: bytes,
    ) -> Begun:
        output.note(f"loading {verified.dump_bytes} bytes of dump")
        await service.load(self.place, name, read_restore_key(self.key), verified)
        await upgrade(url)
        lost = max((one.lost for one in verified.kept), default=0)
        details: dict[str, str | int] = {
            "backup": verified.header.backup_id,
            "log_size": verified.log_size,
            "lost_leaves": lost,
        }
        return await service.begin(successor, signed, details=details)


def _require_known(header: BackupHeader) -> None:
    if header.schema > newest_revision():
        raise SettingsError(
            f"the backup has schema {header.schema}, this build knows {newest_revision()}",
            hint="restore with the version that made it, or a newer one",
        )
