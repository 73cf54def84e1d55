"""What the commands around keysets share: fetch, verify, sign if the root key is here, publish."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shared.dsse import MAX_ENVELOPE_BYTES
from shared.errors import InvalidInputError, NotFoundError, WrongStateError
from shared.key_files import read_private_key, read_public_key
from shared.keyset import KeyPurpose, Keyset, encode_keyset, sign_keyset
from shared.keyset_changes import Change, following
from shared.paths import InstallationPaths
from shared.roots import RootedKeyset, verify_relayed
from shared.signatures import FileSigner, PublicKey

if TYPE_CHECKING:
    from cli.client import Client

LIVES: Final[Mapping[KeyPurpose, timedelta]] = {
    KeyPurpose.ORDER: timedelta(days=730),
    KeyPurpose.POLICY: timedelta(days=730),
    KeyPurpose.LOG: timedelta(days=730),
    KeyPurpose.FRESHNESS: timedelta(days=730),
    KeyPurpose.COMPILER: timedelta(days=730),
    KeyPurpose.PUBLISHER: timedelta(days=1825),
}
"""How long a new key is valid unless somebody says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What became of a change."""

    version: int
    is_in_force: bool
    """False: the root key is not here, so that it waits for a signature."""
    unsigned: Path | None = None


async def newest(client: "Client", root: PublicKey) -> Keyset:
    """Return the newest keyset of the control plane, verified from the pinned root key.

    Raises:
        VerificationError: It is signed neither by that key nor by one to which that has handed over.
    """
    return (await newest_rooted(client, root)).keyset


async def newest_rooted(client: "Client", root: PublicKey) -> RootedKeyset:
    """Return the same, with the root in force. Raises as `newest`."""
    from agentfactory.v1 import keys_pb2

    answer = await client.keys.GetKeyset(keys_pb2.GetKeysetRequest(), timeout=client.timeout)
    return rooted(answer.envelope, root)


def rooted(envelope: bytes, root: PublicKey) -> RootedKeyset:
    """Return a keyset that this root key signed, or one that followed it.

    Raises:
        VerificationError: Neither did.
    """
    return verify_relayed(envelope, root_keys={root.key_id: root}, minimum_version=1)


def read_bounded(path: Path) -> bytes:
    """Return a small file.

    Raises:
        NotFoundError: It cannot be read.
        InvalidInputError: It is larger than any keyset.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ENVELOPE_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_ENVELOPE_BYTES:
        raise InvalidInputError(f"{path} is larger than any keyset")
    return data


def read_keyset(path: Path, root: PublicKey) -> Keyset:
    """Return the signed keyset in a file.

    Raises:
        NotFoundError, InvalidInputError, VerificationError: As `read_bounded` and `rooted`.
    """
    return rooted(read_bounded(path), root).keyset


def write_unsigned(keyset: Keyset, out: Path | None) -> Path:
    """Write what the root key has to sign; returns where."""
    path = out or Path(f"keyset-{keyset.version}.json")
    path.write_bytes(encode_keyset(keyset))
    return path


async def put_in_force(
    client: "Client", paths: InstallationPaths, *changes: Change, out: Path | None = None
) -> tuple[Keyset, Published]:
    """Make the next keyset; sign and publish it if the root key is in the data folder, else write it.

    Returns the keyset and what became of it; without any difference the newest one, in force.

    Raises:
        ConflictError: Somebody else published meanwhile.
        AgentFactoryError: As the changes and the control plane say.
    """
    current = await newest(client, read_public_key(paths.root_public_key))
    changed = following(current, *changes, now=datetime.now(UTC))
    if changed is current:
        return current, Published(version=current.version, is_in_force=True)
    if not paths.root_key.exists():
        path = await asyncio.to_thread(write_unsigned, changed, out)
        return changed, Published(version=changed.version, is_in_force=False, unsigned=path)
    root = FileSigner(key=read_private_key(paths.root_key))
    if root.key.key_id != changed.root_key_id:
        raise WrongStateError(
            f"{paths.root_key} is root key {root.key.key_id}, in force is {changed.root_key_id}",
            hint="put the root key in force there, or take the old one away and sign elsewhere",
        )
    await publish(client, paths, await sign_keyset(changed, [root]))
    return changed, Published(version=changed.version, is_in_force=True)


async def publish(client: "Client", paths: InstallationPaths, envelope: bytes) -> int:
    """Hand a signed keyset over, and keep a copy beside the installation that is here."""
    from agentfactory.v1 import keys_pb2

    request = keys_pb2.PublishKeysetRequest(envelope=envelope)
    answer = await client.keys.PublishKeyset(request, timeout=client.timeout)
    if paths.keyset.exists():
        # As it is relayed: with the handovers that lead to its root.
        relayed = await client.keys.GetKeyset(keys_pb2.GetKeysetRequest(), timeout=client.timeout)
        temporary = paths.keyset.with_suffix(".new")
        temporary.write_bytes(relayed.envelope)
        temporary.replace(paths.keyset)
    return answer.version
