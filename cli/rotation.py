"""`agentfactory keys list|rotate|revoke`: all steps where the root key is, or what is left to do."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from cli import output
from cli.keysets import LIVES, Published, newest, put_in_force
from cli.output import Json
from cli.settings import CliSettings, DatabaseUrl, DataDir, Target, owner_database_url, read_settings
from shared.errors import InvalidInputError, NotFoundError, UnavailableError
from shared.ids import KeyId
from shared.key_files import read_public_key
from shared.keyset import KeyPurpose, Keyset
from shared.keyset_changes import Change, add_key, end_key, end_others, revoke_key
from shared.paths import InstallationPaths
from shared.signatures import PublicKey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cli.client import Client

T = TypeVar("T")

IN_CUSTODY: Final = (KeyPurpose.ORDER, KeyPurpose.POLICY, KeyPurpose.LOG)
"""Purposes whose keys the control plane's custody makes."""
POLL: Final = timedelta(milliseconds=200)
SIGNS_WITHIN: Final = timedelta(seconds=30)
"""How long a new order key may wait for the slowest session."""

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the new order key signs.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Where the next keyset is written if the root key is not here."),
]


def list_keys(data_dir: DataDir = None, target: Target = None, as_json: Json = False) -> None:
    """List the keys of the keyset and of custody, and which of them signs.

    Example: agentfactory keys list
    """
    from agentfactory.v1 import keys_pb2

    from cli.client import Client, call

    async def use(client: Client) -> keys_pb2.ListKeysResponse:
        return await client.keys.ListKeys(keys_pb2.ListKeysRequest(), timeout=client.timeout)

    answer = call(read_settings(data_dir, target), use)
    if output.wants_json():
        output.message(answer)
        return
    output.note(
        f"keyset {answer.keyset_version}, in force on the nodes of the replica: {answer.acknowledged_version}"
    )
    if answer.custody_problem:
        output.note(f"custody does not answer: {answer.custody_problem}")
    if answer.HasField("fresh_at"):
        output.note(f"last statement of freshness: {output.time(answer.fresh_at)}")
    output.table(
        ("purpose", "key", "state", "until", "custody"),
        [
            (
                keys_pb2.KeyPurpose.Name(key.purpose).removeprefix("KEY_PURPOSE_").lower(),
                key.key_id,
                output.enum(keys_pb2.KeyState.Name(key.state)),
                output.time(key.not_after),
                f"{key.custody_name} v{key.custody_version}" if key.custody_name else "",
            )
            for key in answer.keys
        ],
        empty="there is no key",
    )


def rotate(
    purpose: Annotated[
        KeyPurpose, typer.Argument(help="order, policy, log, publisher, compiler or freshness.")
    ],
    overlap_hours: Annotated[
        float, typer.Option("--overlap-hours", min=0, max=8760, help="How long the old key is accepted yet.")
    ] = 1,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="The new key (PEM), if it is kept elsewhere.")
    ] = None,
    replaces: Annotated[
        str | None,
        typer.Option("--replaces", help="Key id that ends; of publishers, compilers: no other does."),
    ] = None,
    wait: Wait = True,
    out: Out = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Replace the key of a purpose without stopping: list the new one, let the old one end later.

    Example: agentfactory keys rotate order --overlap-hours 24
    """
    if (purpose in IN_CUSTODY) == (public_key is not None):
        place = "made in the control plane's custody" if purpose in IN_CUSTODY else "named by --public-key"
        raise InvalidInputError(f"the new key of purpose {purpose} is {place}")
    settings = read_settings(data_dir, target)
    given = None if public_key is None else read_public_key(public_key)

    async def steps(client: "Client") -> tuple[PublicKey, Published]:
        new = given or await create_key(client, purpose)
        now = datetime.now(UTC)
        changes = [add_key(purpose, new, now=now, life=LIVES[purpose])]
        changes += _endings(purpose, new, replaces, now + timedelta(hours=overlap_hours))
        _, published = await put_in_force(client, _paths(settings), *changes, out=out)
        if published.is_in_force and wait and purpose is KeyPurpose.ORDER:
            await wait_until_signing(client, new.key_id)
        return new, published

    new, published = _call(settings, steps)
    _tell(new.key_id, f"is the new key of purpose {purpose}", published)


def revoke(
    key_id: Annotated[str, typer.Argument(help="sha256:…, as 'keys list' shows it.")],
    log_position: Annotated[
        int | None, typer.Option("--log-position", min=0, help="Logged signatures before it stay valid.")
    ] = None,
    wait: Wait = True,
    out: Out = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Let a key count no more, at once; the last that can sign orders gets a successor in the same step.

    Example: agentfactory keys revoke sha256:…
    """
    settings = read_settings(data_dir, target)
    doomed = KeyId(key_id)

    async def steps(client: "Client") -> Published:
        root = read_public_key(_paths(settings).root_public_key)
        now = datetime.now(UTC)
        changes: list[Change] = []
        successor = None
        if await _leaves_none_to_sign(client, await newest(client, root), doomed, now):
            successor = await create_key(client, KeyPurpose.ORDER)
            life = LIVES[KeyPurpose.ORDER]
            changes.append(add_key(KeyPurpose.ORDER, successor, now=now, life=life))
        changes.append(revoke_key(doomed, at=now, log_position=log_position))
        _, published = await put_in_force(client, _paths(settings), *changes, out=out)
        if successor is not None and published.is_in_force and wait:
            await wait_until_signing(client, successor.key_id)
        return published

    _tell(doomed, "is revoked", _call(settings, steps))


async def create_key(client: "Client", purpose: KeyPurpose) -> PublicKey:
    """Have the control plane make a key, or find the one that it made before and no keyset lists."""
    from agentfactory.v1 import keys_pb2

    number = keys_pb2.KeyPurpose.Value(f"KEY_PURPOSE_{purpose.upper()}")
    request = keys_pb2.CreateKeyRequest(purpose=number)
    answer = await client.keys.CreateKey(request, timeout=client.timeout)
    return PublicKey.from_spki_der(answer.key.public_key_der)


async def wait_until_signing(client: "Client", key_id: KeyId) -> None:
    """Return when the control plane signs with this key.

    Raises:
        UnavailableError: It does not within half a minute; the rotation itself goes on.
    """
    from agentfactory.v1 import keys_pb2

    deadline = time.monotonic() + SIGNS_WITHIN.total_seconds()
    while time.monotonic() < deadline:
        answer = await client.keys.ListKeys(keys_pb2.ListKeysRequest(), timeout=client.timeout)
        if any(key.key_id == key_id and key.state == keys_pb2.KEY_STATE_SIGNING for key in answer.keys):
            return
        await asyncio.sleep(POLL.total_seconds())
    raise UnavailableError(
        f"key {key_id} is in the keyset and does not sign yet",
        hint="'agentfactory keys list' shows which keyset the slowest session has",
    )


def rotate_authority(
    overlap_hours: Annotated[
        float,
        typer.Option(
            "--overlap-hours", min=24, max=8760, help="How long what the old one issued counts yet."
        ),
    ] = 720,
    database_url: DatabaseUrl = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Replace the authority that issues certificates, in this data folder. Running control planes follow.

    It is on record if the database is named, here or by AF_CLI_OWNER_DATABASE_URL.

    Example: agentfactory keys rotate-authority --overlap-hours 720
    """
    from control_plane.installation.authorities import rotate_authority as rotate_files
    from shared.clock import SystemClock
    from shared.trust import read_trust

    settings = read_settings(data_dir, None)
    paths = _paths(settings)
    trust = read_trust(paths.trust)
    until = datetime.now(UTC) + timedelta(hours=overlap_hours)
    moved_at = rotate_files(paths, trust.installation, trust.root_key, until=until, clock=SystemClock())
    recorded = _record_authority(settings, database_url, paths, until)
    if output.wants_json():
        said = {"servers_move_at": moved_at.isoformat(), "old_until": until.isoformat(), "recorded": recorded}
        output.data(said)
        return
    if not recorded:
        output.note("this is not in the audit log: no database was named (--database-url)")
    output.note("nodes and callers get certificates of the new authority from now on")
    output.note(f"those of the old one count until {until:%Y-%m-%d %H:%M} UTC")
    output.note(
        f"before {moved_at:%Y-%m-%d %H:%M} UTC, copy {paths.trust} to every node: it follows the file"
    )
    output.note(f"and {paths.ca_certificate} to every gateway, and restart gateways")


def _record_authority(
    settings: CliSettings, database_url: str | None, paths: InstallationPaths, until: datetime
) -> bool:
    """Record a new authority where a database is named; returns whether one was."""
    if database_url is None and settings.owner_database_url is None:
        return False
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    from control_plane.setup import record_new_authority
    from shared.rpc.tls import read_certificates

    issuing = x509.load_pem_x509_certificates(read_certificates(paths.ca_certificate))[0]
    url = owner_database_url(settings, database_url)
    fingerprint = issuing.fingerprint(SHA256()).hex()
    asyncio.run(record_new_authority(url, fingerprint=fingerprint, old_until=until))
    return True


def _endings(purpose: KeyPurpose, new: PublicKey, replaces: str | None, at: datetime) -> list[Change]:
    if replaces is not None:
        return [end_key(KeyId(replaces), at=at)]
    # Publishers are several people, and compiling nodes several machines: only the one that is named ends.
    are_several = purpose in {KeyPurpose.PUBLISHER, KeyPurpose.COMPILER}
    return [] if are_several else [end_others(purpose, new.key_id, at=at)]


async def _leaves_none_to_sign(client: "Client", keyset: Keyset, doomed: KeyId, now: datetime) -> bool:
    """Whether orders cannot be signed without this key: no other that counts is held by the custodian."""
    from agentfactory.v1 import keys_pb2

    if all(entry.key_id != doomed for entry in keyset.entries):
        raise NotFoundError(f"keyset {keyset.version} lists no key {doomed}")
    listed = set(keyset.keys_for(KeyPurpose.ORDER, now))
    answer = await client.keys.ListKeys(keys_pb2.ListKeysRequest(), timeout=client.timeout)
    held = {KeyId(key.key_id) for key in answer.keys if key.custody_name}
    return doomed in listed and not listed & held - {doomed}


def _call(settings: CliSettings, steps: "Callable[[Client], Awaitable[T]]") -> T:
    from cli.client import call  # late: grpc takes 0.4 s

    return call(settings, steps)


def _paths(settings: CliSettings) -> InstallationPaths:
    return InstallationPaths(data_dir=settings.data_dir)


def _tell(key_id: KeyId, what: str, published: Published) -> None:
    if output.wants_json():
        output.data(
            {
                "key_id": key_id,
                "keyset_version": published.version,
                "in_force": published.is_in_force,
                "unsigned": None if published.unsigned is None else str(published.unsigned),
            }
        )
        return
    if published.is_in_force:
        output.note(f"key {key_id} {what}, since keyset {published.version}")
        return
    output.note("the root key is not here, so nothing has changed yet. Where it is:")
    output.note(f"  agentfactory keys keyset sign {published.unsigned} --root-key root.key")
    output.note("and then, here:")
    output.note(f"  agentfactory keys keyset publish keyset-{published.version}.dsse")
    print(published.unsigned)
