"""`agentfactory keys keyset …`: the root-signed list of keys, step by step; signing needs no network."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.keysets import LIVES, publish, read_bounded, read_keyset, write_unsigned
from cli.output import Json
from cli.settings import DataDir, Target, read_settings
from shared.errors import InvalidInputError, RollbackError, WrongStateError
from shared.ids import KeyId
from shared.key_files import read_private_key, read_public_key
from shared.keyset import KeyPurpose, Keyset, decode_keyset, sign_keyset
from shared.keyset_changes import (
    Change,
    add_key,
    differences,
    drop_key,
    end_key,
    following,
    revoke_key,
    undone,
)
from shared.paths import InstallationPaths
from shared.signatures import FileSigner, PublicKey

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="The root-signed list of keys: show, change, sign (offline), publish.",
)

From = Annotated[
    Path | None,
    typer.Option("--from", help="Signed keyset to start from; absent: the control plane's newest."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write; absent: keyset-N in this folder.")]
Root = Annotated[
    Path | None, typer.Option("--root", help="Root's public key (PEM); absent: the data folder's.")
]
KeyIdArgument = Annotated[str, typer.Argument(help="sha256:…, as 'keys list' shows it.")]


@app.command()
def show(
    from_: From = None,
    root: Root = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Show a keyset after verifying it under the root key.

    Example: agentfactory keys keyset show --from keyset-3.dsse
    """
    print_keyset(_start(from_, root, data_dir, target))


@app.command()
def add(
    public_key: Annotated[Path, typer.Option("--public-key", help="PEM file of the key.")],
    purpose: Annotated[KeyPurpose, typer.Option("--purpose", help="What it may sign.")],
    days: Annotated[int | None, typer.Option("--days", min=1, max=3650, help="How long it is valid.")] = None,
    from_: From = None,
    out: Out = None,
    root: Root = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Write the next keyset with one key more, for the root key to sign.

    Example: agentfactory keys keyset add --purpose freshness --public-key freshness.pub
    """
    life = LIVES[purpose] if days is None else timedelta(days=days)
    change = add_key(purpose, read_public_key(public_key), now=datetime.now(UTC), life=life)
    _write(_start(from_, root, data_dir, target), change, out)


@app.command()
def revoke(
    key_id: KeyIdArgument,
    log_position: Annotated[
        int | None, typer.Option("--log-position", min=0, help="Logged signatures before it stay valid.")
    ] = None,
    from_: From = None,
    out: Out = None,
    root: Root = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Write the next keyset in which a key counts no more, for the root key to sign.

    Example: agentfactory keys keyset revoke sha256:…
    """
    change = revoke_key(KeyId(key_id), at=datetime.now(UTC), log_position=log_position)
    _write(_start(from_, root, data_dir, target), change, out)


@app.command()
def end(
    key_id: KeyIdArgument,
    hours: Annotated[float, typer.Option("--hours", min=0, help="How long it is still accepted.")] = 1,
    from_: From = None,
    out: Out = None,
    root: Root = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Write the next keyset in which a key ends soon, for the root key to sign.

    Example: agentfactory keys keyset end sha256:… --hours 24
    """
    change = end_key(KeyId(key_id), at=datetime.now(UTC) + timedelta(hours=hours))
    _write(_start(from_, root, data_dir, target), change, out)


@app.command()
def remove(
    key_id: KeyIdArgument,
    from_: From = None,
    out: Out = None,
    root: Root = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Write the next keyset without a key at all; evidence that it signed cannot be verified any more.

    Example: agentfactory keys keyset remove sha256:…
    """
    _write(_start(from_, root, data_dir, target), drop_key(KeyId(key_id)), out)


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="What add, revoke or end wrote.")],
    root_key: Annotated[Path, typer.Option("--root-key", help="Root's private key (PEM, mode 0600).")],
    current: Annotated[
        Path | None, typer.Option("--current", help="Signed keyset in force: what changes is shown.")
    ] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Sign a keyset with the root key. Asks nobody: works on a machine without a network.

    Example: agentfactory keys keyset sign keyset-3.json --root-key root.key --current keyset-2.dsse
    """
    keyset = decode_keyset(read_bounded(file))
    key = read_private_key(root_key)
    if keyset.root_key_id != key.key_id:
        raise InvalidInputError(f"{file} is for root key {keyset.root_key_id}, {root_key} is {key.key_id}")
    changes = _changes_since(current, keyset, key.public)
    path = out or file.with_suffix(".dsse")
    path.write_bytes(asyncio.run(sign_keyset(keyset, [FileSigner(key=key)])))
    if output.wants_json():
        output.data({"version": keyset.version, "signed": str(path), "changes": changes})
        return
    for line in changes:
        output.note(line)
    output.note(f"keyset {keyset.version} of {keyset.installation} is signed: publish {path}")
    print(path)


@app.command("publish")
def publish_command(
    file: Annotated[Path, typer.Argument(help="Signed keyset.")],
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Put a signed keyset in force. Repeat: nothing changes.

    Example: agentfactory keys keyset publish keyset-3.dsse
    """
    from cli.client import Client, call

    settings = read_settings(data_dir, target)
    envelope = read_bounded(file)

    async def use(client: Client) -> int:
        return await publish(client, InstallationPaths(data_dir=settings.data_dir), envelope)

    version = call(settings, use)
    if output.wants_json():
        output.data({"version": version})
    else:
        output.note(f"keyset {version} is in force")


def print_keyset(keyset: Keyset) -> None:
    """Print what a keyset lists."""
    now = datetime.now(UTC)
    rows = [
        {
            "purpose": str(entry.purpose),
            "key_id": entry.key_id,
            "algorithm": str(entry.algorithm),
            "not_before": entry.not_before.isoformat(),
            "not_after": entry.not_after.isoformat(),
            "revoked_at": "" if entry.revoked_at is None else entry.revoked_at.isoformat(),
            "valid": entry.is_valid(now),
        }
        for entry in keyset.entries
    ]
    if output.wants_json():
        output.data({"version": keyset.version, "root_key_id": keyset.root_key_id, "keys": rows})
        return
    output.note(f"keyset {keyset.version} of {keyset.installation}, signed by root key {keyset.root_key_id}")
    output.table(
        ("purpose", "key", "algorithm", "valid", "until"),
        [
            (
                str(row["purpose"]),
                str(row["key_id"]),
                str(row["algorithm"]),
                "revoked" if row["revoked_at"] else ("yes" if row["valid"] else "no"),
                str(row["not_after"]),
            )
            for row in rows
        ],
        empty="it lists no key",
    )


def _start(from_: Path | None, root: Path | None, data_dir: Path | None, target: str | None) -> Keyset:
    settings = read_settings(data_dir, target)
    pinned = read_public_key(root or InstallationPaths(data_dir=settings.data_dir).root_public_key)
    if from_ is not None:
        return read_keyset(from_, pinned)
    from cli.client import Client, call
    from cli.keysets import newest

    async def use(client: Client) -> Keyset:
        return await newest(client, pinned)

    return call(settings, use)


def _write(keyset: Keyset, change: Change, out: Path | None) -> None:
    changed = following(keyset, change, now=datetime.now(UTC))
    if changed is keyset:
        raise WrongStateError(f"keyset {keyset.version} says so already")
    path = write_unsigned(changed, out)
    changes = differences(keyset, changed)
    if output.wants_json():
        output.data({"version": changed.version, "unsigned": str(path), "changes": changes})
        return
    for line in changes:
        output.note(line)
    output.note(f"next, where the root key is: agentfactory keys keyset sign {path} --root-key root.key")
    print(path)


def _changes_since(current: Path | None, keyset: Keyset, root: PublicKey) -> list[str]:
    if current is None:
        return []
    older = read_keyset(current, root)
    if keyset.version != older.version + 1:
        raise RollbackError(f"keyset {keyset.version} does not follow {older.version}, the one in force")
    if problem := undone(older, keyset):
        raise InvalidInputError(f"{problem}; a revocation is not taken back")
    return differences(older, keyset)
