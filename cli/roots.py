"""`agentfactory keys root …`: a root key hands over to the next, or is replaced when it is lost or stolen."""

import asyncio
from dataclasses import replace as changed
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.keysets import newest_rooted, read_bounded, rooted
from cli.output import Json
from cli.settings import DatabaseUrl, DataDir, Target, owner_database_url, read_settings
from shared.errors import InvalidInputError, WrongStateError
from shared.key_files import read_private_key, read_public_key, write_private_key
from shared.keyset import Keyset, sign_keyset
from shared.paths import InstallationPaths
from shared.roots import Handover, RelayedKeyset, RootedKeyset, encode_relayed, sign_handover
from shared.signatures import FileSigner, PrivateKey, PublicKey

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="The root key: hand over to the next, pin it, replace it.",
)

New = Annotated[
    Path,
    typer.Option("--new", help="The new root's private key (PEM, mode 0600); made when it is not there."),
]


@app.command()
def rotate(
    old: Annotated[Path, typer.Option("--old", help="Private root key in force (PEM, mode 0600).")],
    new: New,
    current: Annotated[
        Path | None,
        typer.Option("--current", help="Signed keyset in force; absent: keyset.dsse of the data folder."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write; absent: keyset-N.dsse in this folder.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write the next keyset by a new root key, with the statement that the old one hands over to it.

    Asks nobody: works on a machine without a network. 'keys keyset publish' puts it in force.

    Example: agentfactory keys root rotate --old root.key --new root2.key --current keyset-3.dsse
    """
    key = read_private_key(old)
    held = rooted(read_bounded(current or _paths(data_dir).keyset), key.public)
    if held.keyset.root_key_id != key.key_id:
        raise WrongStateError(f"{old} has handed over already, to root key {held.keyset.root_key_id}")
    successor = _ensure_key(new)
    if successor.key_id == key.key_id:
        raise InvalidInputError(f"{new} is the root key in force", hint="name a file that is not there yet")
    made = asyncio.run(_hand_over(held, key, successor))
    version = held.keyset.version + 1
    path = out or Path(f"keyset-{version}.dsse")
    path.write_bytes(encode_relayed(made))
    if output.wants_json():
        output.data({"version": version, "signed": str(path), "root_key_id": successor.key_id})
        return
    output.note(f"root key {key.key_id} hands over to {successor.key_id} with keyset {version}")
    output.note(f"next, where the control plane is: agentfactory keys keyset publish {path}")
    output.note(f"sign with {new} from then on; keep {old} for a while, and then destroy it")
    print(path)


@app.command()
def pin(
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Pin the root key in force in this data folder, after verifying each handover that leads to it.

    A rotation does not need it; but what pins the new root does not care who has the old one.

    Example: agentfactory keys root pin
    """
    from cli.client import Client, call
    from control_plane.installation.files import write_public_file, write_trust
    from shared.trust import read_trust

    settings = read_settings(data_dir, target)
    paths = InstallationPaths(data_dir=settings.data_dir)
    before, trust = read_public_key(paths.root_public_key), read_trust(paths.trust)

    async def use(client: Client) -> RootedKeyset:
        return await newest_rooted(client, before)

    found = call(settings, use)
    _require_taken(paths, found.root)
    write_public_file(paths.root_public_key, found.root.to_pem())
    write_trust(paths, trust.installation, found.root, trust.ca_certificate_pem)
    if output.wants_json():
        output.data({"root_key_id": found.root.key_id, "was": before.key_id, "trust": str(paths.trust)})
        return
    output.note(f"root key {found.root.key_id} is pinned here and in {paths.trust}")


@app.command()
def replace(
    new: New,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Let another root key take over that the old one does not vouch for: it is lost, or in the wrong hands.

    Stop the control planes first. Afterwards every node needs the new trust.json, see docs/keys.md.

    Example: agentfactory keys root replace --new root2.key --database-url postgresql://owner@/agentfactory
    """
    from control_plane.setup import replace_root

    settings = read_settings(data_dir)
    paths = InstallationPaths(data_dir=settings.data_dir)
    url = owner_database_url(settings, database_url)
    root = _ensure_key(new)
    version = asyncio.run(replace_root(paths=paths, owner_database_url=url, root=root))
    if output.wants_json():
        output.data({"version": version, "root_key_id": root.key_id, "trust": str(paths.trust)})
        return
    output.note(f"root key {root.key_id} signs keysets since version {version}")
    output.note(f"on every node: put {paths.trust} in place, remove keyset.dsse, and start it again")


async def _hand_over(held: RootedKeyset, old: PrivateKey, new: PrivateKey) -> RelayedKeyset:
    now = datetime.now(UTC)
    keyset: Keyset = changed(
        held.keyset, version=held.keyset.version + 1, issued_at=now, root_key_id=new.key_id
    )
    handover = Handover(
        installation=keyset.installation, old_root_key_id=old.key_id, new_root=new.public, issued_at=now
    )
    signers = FileSigner(key=old), FileSigner(key=new)
    statement = await sign_handover(handover, old=signers[0], new=signers[1])
    return RelayedKeyset(
        envelope=await sign_keyset(keyset, [signers[1]]), handovers=(*held.relayed.handovers, statement)
    )


def _ensure_key(path: Path) -> PrivateKey:
    if not path.exists():
        write_private_key(path, PrivateKey.generate_ed25519())
        output.note(f"made {path}")
    return read_private_key(path)


def _require_taken(paths: InstallationPaths, root: PublicKey) -> None:
    """A node whose last keyset is by an earlier root would not start with only the later one pinned."""
    if not paths.node.keyset.exists():
        return
    node_has = rooted(read_bounded(paths.node.keyset), read_public_key(paths.root_public_key))
    if node_has.keyset.root_key_id != root.key_id:
        raise WrongStateError(
            f"the node in {paths.node.data_dir} has keyset {node_has.keyset.version}, by an earlier root key",
            hint="start it, and pin once it has the newest one",
        )


def _paths(data_dir: Path | None) -> InstallationPaths:
    return InstallationPaths(data_dir=read_settings(data_dir).data_dir)
