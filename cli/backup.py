"""`agentfactory backup …`: encrypted archives of an installation, made, looked at, verified and restored."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.backups import (
    database_to_fill,
    files_to_copy,
    newest_keyset,
    pinned_root,
    programs,
    put_back,
    read_notes,
    running_url,
    signed_epoch,
)
from cli.output import Json
from cli.settings import CliSettings, DatabaseUrl, DataDir, read_settings
from shared.errors import InvalidInputError
from shared.paths import InstallationPaths

if TYPE_CHECKING:
    from control_plane.backup.ports import ArchivePlace
    from control_plane.backup.service import Begun, Listed
    from control_plane.backup.verification import VerifiedBackup

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Encrypted backups: make, list, verify, restore; begin the epoch after a restore by other tools.",
)

Place = Annotated[
    str | None,
    typer.Option("--place", help="Folder or s3://bucket/prefix (AF_CLI_BACKUP_PLACE).", show_default=False),
]
RestoreKeyFile = Annotated[
    Path, typer.Option("--key", help="Key that opens backups (mode 0600): backup-restore.key.")
]
Name = Annotated[str, typer.Argument(help="Name of the backup, as list shows it, or latest.")]
RootKeyFile = Annotated[
    Path | None,
    typer.Option("--root-key", help="Public root key that is believed; absent: the data folder's root.pub."),
]
Checkpoints = Annotated[
    list[Path] | None,
    typer.Option("--checkpoint", help="Checkpoint of the log that was kept elsewhere; repeatable."),
]
NewestKeyset = Annotated[
    Path | None,
    typer.Option("--keyset", help="The newest keyset ever published; absent: the data folder's keyset.dsse."),
]
EpochKeyset = Annotated[
    Path | None,
    typer.Option("--epoch-keyset", help="Keyset that begins the epoch, signed where the root key is."),
]


@app.command("keys")
def make_keys(
    out: Annotated[Path, typer.Option("--out", help="Folder for both files.")] = Path(),
    as_json: Json = False,
) -> None:
    """Make the two keys of backups: one makes archives and reads none, the other opens them.

    Example: agentfactory backup keys --out /secure
    """
    from control_plane.backup.keys import write_keys

    create, restore = out / "backup-create.key", out / "backup-restore.key"
    write_keys(create, restore)
    if output.wants_json():
        output.data({"create": str(create), "restore": str(restore)})
        return
    output.fields([("makes backups", create), ("opens backups", restore)])
    output.note(f"keep {restore.name} offline, twice: without it no backup can be read by anybody")


@app.command()
def create(
    key: Annotated[
        Path, typer.Option("--key", help="Key that makes backups (mode 0600): backup-create.key.")
    ],
    place: Place = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="Remove all but so many of the newest.")
    ] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Copy database, keysets, modules and public files into an encrypted archive, beside a running service.

    Example: agentfactory backup create --key backup-create.key --place /backups --keep 14
    """
    from control_plane.backup.keys import read_create_key
    from control_plane.setup_backup import backup_service

    settings = read_settings(data_dir)
    maker, target = read_create_key(key), _place(settings, place)
    url = running_url(settings, database_url)
    files = files_to_copy(InstallationPaths(data_dir=settings.data_dir))

    async def work() -> None:
        async with backup_service(url, programs(settings)) as service:
            made = await service.create(target, maker, files=files, keep=keep, told=output.note)
        if output.wants_json():
            said = {"place": target.name, "size_bytes": made.size_bytes, "dump_bytes": made.dump_bytes}
            output.data({"name": made.header.name, **said, **_facts(made.header), "removed": made.removed})
            return
        output.note(f"{made.size_bytes} bytes of {made.dump_bytes} in the dump; {len(made.removed)} removed")
        print(made.header.name)

    asyncio.run(work())


@app.command("list")
def list_command(
    place: Place = None,
    after: Annotated[str, typer.Option("--after", help="Show what comes behind this name.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Most to show.")] = 50,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show backups, newest first, with what their headers claim; verify proves it.

    Example: agentfactory backup list --place /backups
    """
    from control_plane.backup.service import list_backups

    target = _place(read_settings(data_dir), place)
    page, more = asyncio.run(list_backups(target, after=after, limit=limit))
    rows = [_row(one) for one in page]
    following = page[-1].stored.name if more else ""
    if output.wants_json():
        output.data({"place": target.name, "backups": rows, "next_after": following})
        return
    output.table(
        ("name", "bytes", "installation", "epoch", "schema", "problem"),
        [
            [
                str(row[column])
                for column in ("name", "size_bytes", "installation", "epoch", "schema", "problem")
            ]
            for row in rows
        ],
        empty=f"no backup in {target.name}",
    )
    if following:
        output.note(f"there are more: --after {following}")


@app.command()
def verify(
    name: Name,
    key: RestoreKeyFile,
    place: Place = None,
    root_key: RootKeyFile = None,
    checkpoint: Checkpoints = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Check a backup whole: digests, signatures, the log. Needs no database and changes nothing.

    Example: agentfactory backup verify latest --key backup-restore.key --place /backups
    """
    from control_plane.backup.keys import read_restore_key
    from control_plane.backup.service import newest_name, verify_backup

    settings = read_settings(data_dir)
    target = _place(settings, place)
    work = verify_backup(
        target,
        newest_name(target, name),
        read_restore_key(key),
        programs=programs(settings),
        root=pinned_root(_paths(settings), root_key, output.note),
        kept=read_notes(checkpoint),
        told=output.note,
    )
    verified = asyncio.run(work)
    if output.wants_json():
        output.data({"name": verified.header.name, **_facts(verified.header), **_findings(verified)})
        return
    for kept in verified.kept:
        output.note(_about_kept(kept.size, kept.lost))
    output.note(f"{verified.header.name} is whole: {verified.log_size} leaves in its log")


@app.command()
def restore(
    name: Name,
    key: RestoreKeyFile,
    place: Place = None,
    root_key: RootKeyFile = None,
    keyset: NewestKeyset = None,
    epoch_keyset: EpochKeyset = None,
    checkpoint: Checkpoints = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Verify a backup, load it into an empty database, and begin another epoch of the installation.

    Without a database url it fills the embedded Postgres of `up`, which must not run.

    Example: agentfactory backup restore latest --key backup-restore.key --place /backups
    """
    from cli.backup_restore import Restore

    settings = read_settings(data_dir)
    paths = _paths(settings)
    work = Restore(
        settings=settings,
        place=_place(settings, place),
        name=name,
        key=key,
        keyset=newest_keyset(paths, keyset),
        epoch_keyset=epoch_keyset,
        root=pinned_root(paths, root_key, output.note),
        kept=read_notes(checkpoint),
    )
    begun, verified, written = asyncio.run(work.run(database_url))
    if output.wants_json():
        output.data(
            {"name": verified.header.name, **_epoch(begun), **_findings(verified), "written": written}
        )
        return
    for one in verified.kept:
        output.note(_about_kept(one.size, one.lost))
    for path in written:
        output.note(f"wrote {path}")
    _say_epoch(begun, paths)


@app.command("new-epoch")
def new_epoch(
    root_key: RootKeyFile = None,
    keyset: NewestKeyset = None,
    epoch_keyset: EpochKeyset = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Begin another epoch in a database that other tools brought back. Every control plane has to be stopped.

    After recovery to a point in time, and when a standby that lacked commits was promoted.

    Example: agentfactory backup new-epoch --database-url postgresql://…
    """
    from control_plane.setup_backup import backup_service

    settings = read_settings(data_dir)
    paths = _paths(settings)
    given, root = newest_keyset(paths, keyset), pinned_root(paths, root_key, output.note)({})

    async def work() -> "Begun":
        async with (
            database_to_fill(settings, database_url) as url,
            backup_service(url, programs(settings)) as service,
        ):
            successor = await service.successor(given, root)
            signed = await signed_epoch(paths, successor, epoch_keyset)
            return await service.begin(successor, signed, details={})

    begun = asyncio.run(work())
    put_back(paths, {}, root, begun.envelope)
    if output.wants_json():
        output.data(_epoch(begun))
        return
    _say_epoch(begun, paths)


def _place(settings: CliSettings, option: str | None) -> "ArchivePlace":
    from control_plane.setup_backup import archive_place

    named = option or settings.backup_place
    if not named:
        raise InvalidInputError("no place for backups is named", hint="use --place or AF_CLI_BACKUP_PLACE")
    return archive_place(named)


def _paths(settings: CliSettings) -> InstallationPaths:
    return InstallationPaths(data_dir=settings.data_dir)


def _facts(header: object) -> dict[str, object]:
    from control_plane.backup.domain import BackupHeader

    assert isinstance(header, BackupHeader)
    return {
        "backup_id": header.backup_id,
        "installation": header.installation,
        "epoch": header.epoch,
        "snapshot_at": header.snapshot_at.isoformat(),
        "schema": header.schema,
        "postgres": header.postgres,
    }


def _row(listed: "Listed") -> dict[str, object]:
    said: dict[str, object] = {"name": listed.stored.name, "size_bytes": listed.stored.size_bytes}
    said |= (
        {"installation": "", "epoch": "", "schema": ""} if listed.header is None else _facts(listed.header)
    )
    return said | {"problem": listed.problem}


def _findings(verified: "VerifiedBackup") -> dict[str, object]:
    return {
        "log_size": verified.log_size,
        "dump_bytes": verified.dump_bytes,
        "root_key_id": verified.root_key.key_id,
        "rows": dict(verified.counts),
        "checkpoints": [{"size": one.size, "lost": one.lost} for one in verified.kept],
        "checks": list(verified.checks),
    }


def _epoch(begun: "Begun") -> dict[str, object]:
    said = {"installation": begun.installation, "epoch": begun.epoch}
    return said | {"keyset_version": begun.keyset_version}


def _about_kept(size: int, lost: int) -> str:
    if lost:
        return f"checkpoint of {size} leaves: {lost} that it has are not in the backup, and are lost"
    return f"checkpoint of {size} leaves: the backup's log continues it"


def _say_epoch(begun: "Begun", paths: InstallationPaths) -> None:
    output.note(f"epoch {begun.epoch} of {begun.installation} has begun, keyset {begun.keyset_version}")
    output.note(f"it is {paths.keyset}")
    output.note("start the control planes; nodes follow by themselves. Verifiers need a new trust file")
