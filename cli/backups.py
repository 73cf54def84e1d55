"""What the commands around backups share: which database, programs and files; who signs the next epoch."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli import output
from cli.keysets import read_bounded, write_unsigned
from cli.settings import CliSettings
from cli.stack import children, local, postgres
from cli.state import read_stack
from shared.checkpoints import MAX_NOTE_BYTES
from shared.errors import InvalidInputError, NotFoundError, SettingsError, UnavailableError, WrongStateError
from shared.key_files import read_private_key, read_public_key
from shared.keyset import sign_keyset
from shared.paths import InstallationPaths
from shared.settings import default_config_file
from shared.signatures import FileSigner, PublicKey

if TYPE_CHECKING:
    from control_plane.backup.service import Successor

MAX_COPIED_BYTES: Final = 4 * 1024 * 1024
ROOT_PUBLIC: Final = "root.pub"
SETTINGS_FILE: Final = "agentfactory.toml"
STOP_GRACE: Final = timedelta(seconds=20)


def programs(settings: CliSettings) -> list[Path]:
    """Return the folders in which Postgres' programs may be: the named one, or all that are usual."""
    import shutil

    if settings.postgres_programs is not None:
        return [settings.postgres_programs]
    folders = []
    try:
        folders.append(postgres.programs() / "bin")
    except UnavailableError:
        """No embedded Postgres here."""
    on_path = shutil.which("pg_dump")
    if on_path is not None:
        folders.append(Path(on_path).parent)
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return folders


def running_url(settings: CliSettings, option: str | None) -> str:
    """Return the owner's URL of a database that runs: the named one, or that of `up` on this data folder.

    Raises:
        SettingsError: None is named, and no `up` runs here.
    """
    if (named := _named(settings, option)) is not None:
        return named
    if read_stack(settings.data_dir) is None:
        raise SettingsError(
            f"no database is named, and no 'agentfactory up' runs on {settings.data_dir}",
            hint="use --database-url or AF_CLI_OWNER_DATABASE_URL",
        )
    return postgres.locate(settings.data_dir).url()


@asynccontextmanager
async def database_to_fill(settings: CliSettings, option: str | None) -> AsyncIterator[str]:
    """Give the owner's URL of the named database, or of an embedded Postgres started here for `up`.

    Raises:
        WrongStateError: `up` runs on this data folder.
        UnavailableError: Postgres does not start.
    """
    if (named := _named(settings, option)) is not None:
        yield named
        return
    local.prepare_folder(settings.data_dir)
    with local.locked(settings.data_dir):
        files = postgres.locate(settings.data_dir)
        child = await postgres.start(files)
        try:
            yield files.url()
        finally:
            await children.stop(child, grace=STOP_GRACE)


def _named(settings: CliSettings, option: str | None) -> str | None:
    if option is not None:
        return option
    url = settings.owner_database_url
    return None if url is None else url.get_secret_value()


def files_to_copy(paths: InstallationPaths) -> dict[str, bytes]:
    """Return the public files of an installation and the settings: no private key is among them.

    Raises:
        InvalidInputError: One of them is larger than such a file can be.
    """
    config = default_config_file(Path.cwd())
    wanted = {ROOT_PUBLIC: paths.root_public_key, **_restorable(paths)}
    wanted |= {"keyset.dsse": paths.keyset} | ({} if config is None else {SETTINGS_FILE: config})
    found = {}
    for name, path in wanted.items():
        if not path.exists():
            continue
        data = path.read_bytes()
        if len(data) > MAX_COPIED_BYTES:
            raise InvalidInputError(f"{path} has {len(data)} bytes, which is no file of an installation")
        found[name] = data
    return found


def _restorable(paths: InstallationPaths) -> dict[str, Path]:
    """Files that a restore puts in place where they are missing."""
    return {
        "installation.json": paths.description,
        "trust.json": paths.trust,
        "token-keys.json": paths.token_keys,
        "ca.crt": paths.ca_certificate,
        "ca-retiring.crt": paths.retiring_ca_certificate,
    }


def put_back(
    paths: InstallationPaths, files: Mapping[str, bytes], root: PublicKey, keyset: bytes
) -> list[str]:
    """Write the public files that are missing here, and the keyset in force; returns what was written.

    The settings go beside them under another name: nobody wants them changed unasked.
    """
    from control_plane.installation.files import write_public_file
    from shared.key_files import write_secret_file

    written = []
    for name, path in _restorable(paths).items():
        if name in files and not path.exists():
            write_public_file(path, files[name])
            written.append(str(path))
    if not paths.root_public_key.exists():
        write_public_file(paths.root_public_key, root.to_pem())
        written.append(str(paths.root_public_key))
    write_public_file(paths.keyset, keyset)
    beside = paths.data_dir / f"restored-{SETTINGS_FILE}"
    if SETTINGS_FILE in files and not beside.exists():
        write_secret_file(beside, files[SETTINGS_FILE])
        written.append(str(beside))
    return written


def pinned_root(
    paths: InstallationPaths, option: Path | None, say: Callable[[str], None]
) -> Callable[[Mapping[str, bytes]], PublicKey]:
    """Return what says which root key is believed: the named one, that of the data folder, or the backup's.

    The last one is what the maker of the backup pinned: its id is said, to be compared.
    """

    def choose(files: Mapping[str, bytes]) -> PublicKey:
        if option is not None:
            return read_public_key(option)
        if paths.root_public_key.exists():
            return read_public_key(paths.root_public_key)
        if ROOT_PUBLIC not in files:
            raise NotFoundError("no root key is known", hint="give it: --root-key root.pub")
        root = PublicKey.from_pem(files[ROOT_PUBLIC])
        say(f"root key {root.key_id} is the backup's own word: compare it with yours, or give --root-key")
        return root

    return choose


def read_notes(paths: list[Path] | None) -> list[bytes]:
    """Return checkpoints that were kept, as signed notes.

    Raises:
        NotFoundError, InvalidInputError: A file cannot be read, or is larger than any.
    """
    notes = [read_bounded(path) for path in paths or ()]
    if any(len(note) > MAX_NOTE_BYTES for note in notes):
        raise InvalidInputError("a checkpoint is larger than any signed note")
    return notes


def newest_keyset(paths: InstallationPaths, option: Path | None) -> bytes:
    """Return the newest keyset that is known here.

    Raises:
        InvalidInputError: There is none.
    """
    path = option or paths.keyset
    if not path.exists():
        raise InvalidInputError(
            "the newest keyset is not here: a backup may be older than a revocation",
            hint="give the newest one that was ever published: --keyset keyset.dsse",
        )
    return read_bounded(path)


async def signed_epoch(paths: InstallationPaths, successor: "Successor", signed: Path | None) -> bytes:
    """Return the keyset that begins the next epoch, signed here or elsewhere.

    Raises:
        WrongStateError: The root key is not here; what it has to sign was written to a file.
    """
    from control_plane.backup.service import unsigned_relayed

    if signed is not None:
        return unsigned_relayed(successor, read_bounded(signed))
    if paths.root_key.exists():
        root = read_private_key(paths.root_key)
        if root.key_id == successor.keyset.root_key_id:
            return unsigned_relayed(successor, await sign_keyset(successor.keyset, [FileSigner(key=root)]))
    path = write_unsigned(successor.keyset, None)
    output.note(f"wrote {path}: epoch {successor.keyset.epoch} begins by it")
    raise WrongStateError(
        f"root key {successor.keyset.root_key_id} is not here to begin another epoch; nothing was changed",
        hint=f"where it is: agentfactory keys keyset sign {path}; then repeat with --epoch-keyset "
        f"{path.with_suffix('.dsse')}",
    )
