"""`agentfactory keys …`: the publisher key of this machine, and which keys the installation trusts."""

from pathlib import Path
from typing import Annotated

import typer

from cli import freshness, keyset, output, roots, rotation
from cli.keyset import print_keyset
from cli.output import Json
from cli.settings import DatabaseUrl, DataDir, owner_database_url, read_settings
from shared.errors import NotFoundError
from shared.paths import InstallationPaths
from shared.signatures import PublicKey

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Make, list, rotate and revoke keys; the keyset."
)
app.add_typer(keyset.app, name="keyset")
app.add_typer(freshness.app, name="freshness")
app.add_typer(roots.app, name="root")
app.command("list")(rotation.list_keys)
app.command()(rotation.rotate)
app.command()(rotation.rotate_authority)
app.command()(rotation.revoke)


@app.command()
def init(
    out: Annotated[
        Path | None, typer.Option("--out", help="Private key file; absent: publisher.key of the data folder.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a publisher's RSA key pair, unless there is one.

    Example: agentfactory keys init --out publisher.key
    """
    path = out or InstallationPaths(data_dir=read_settings(data_dir).data_dir).publisher_key
    public, created = ensure_publisher_key(path)
    if output.wants_json():
        output.data({"private_key": str(path), "public_key_id": public.key_id, "created": created})
        return
    output.note(f"{'made' if created else 'found'} {path} and {path.with_suffix('.pub')}")
    print(public.key_id)


def ensure_publisher_key(path: Path) -> tuple[PublicKey, bool]:
    """Return the publisher's public key, and whether the pair was made now.

    Raises:
        KeyFileModeError: The private key may be read by others.
        KeyFormatError: It is no key that publishers may have.
    """
    from shared.key_files import read_private_key, write_private_key
    from shared.signatures import PrivateKey

    created = not path.exists()
    if created:
        write_private_key(path, PrivateKey.generate_rsa())
    public = read_private_key(path).public
    path.with_suffix(".pub").write_bytes(public.to_pem())
    return public, created


@app.command()
def trust(
    public_key: Annotated[Path, typer.Argument(help="Publisher's public key (PEM).")],
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Trust a publisher: sign the next keyset with the root key of the data folder.

    Example: agentfactory keys trust publisher.pub --database-url postgresql://owner@/agentfactory
    """
    import asyncio

    from control_plane.setup import add_publisher
    from shared.key_files import read_public_key

    key = read_public_key(public_key)
    settings = read_settings(data_dir)
    paths = InstallationPaths(data_dir=settings.data_dir)
    url = owner_database_url(settings, database_url)
    version = asyncio.run(add_publisher(paths=paths, owner_database_url=url, publisher=key))
    if output.wants_json():
        output.data({"publisher_key_id": key.key_id, "keyset_version": version})
        return
    output.note(f"publisher {key.key_id} is trusted since keyset {version}")


@app.command()
def show(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show the keys that the installation's keyset lists, after verifying it under the root key.

    Example: agentfactory keys show
    """
    from shared.key_files import read_public_key
    from shared.roots import verify_relayed

    paths = InstallationPaths(data_dir=read_settings(data_dir).data_dir)
    root = read_public_key(paths.root_public_key)
    try:
        envelope = paths.keyset.read_bytes()
    except OSError as error:
        raise NotFoundError(f"cannot read {paths.keyset}: {error.strerror}") from error
    found = verify_relayed(envelope, root_keys={root.key_id: root}, minimum_version=1)
    print_keyset(found.keyset)
