"""`agentfactory keys freshness …`: states, again and again, that a keyset is the newest.

Runs away from the control plane, with a key of its own: a control plane in the wrong hands can keep a
revocation from nodes only for as long as one statement lives.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import output
from cli.keysets import newest_rooted, read_keyset
from cli.output import Json
from cli.settings import CliSettings, DataDir, Target, read_settings
from shared.errors import AgentFactoryError, RollbackError, UnknownKeyError
from shared.freshness import FreshnessStatement, sign_statement
from shared.ids import InstallationId
from shared.key_files import read_private_key, read_public_key, write_private_key
from shared.keyset import KeyPurpose, Keyset
from shared.paths import InstallationPaths
from shared.signatures import FileSigner, PrivateKey

if TYPE_CHECKING:
    from cli.client import Client

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="State that the newest keyset is the newest."
)

FALLBACK: Final = Path("freshness.key")


@app.command()
def init(
    out: Annotated[Path, typer.Option("--out", help="Private key file.")] = FALLBACK, as_json: Json = False
) -> None:
    """Make a freshness key, unless there is one. Keep it away from the control plane.

    Example: agentfactory keys freshness init --out freshness.key
    """
    created = not out.exists()
    if created:
        write_private_key(out, PrivateKey.generate_ed25519())
    public = read_private_key(out).public
    out.with_suffix(".pub").write_bytes(public.to_pem())
    if output.wants_json():
        output.data({"private_key": str(out), "public_key_id": public.key_id, "created": created})
        return
    output.note(f"{'made' if created else 'found'} {out} and {out.with_suffix('.pub')}")
    print(public.key_id)


@app.command()
def run(
    key: Annotated[Path, typer.Option("--key", help="Private freshness key (mode 0600).")],
    every: Annotated[float, typer.Option("--every", min=1, max=600, help="Seconds between statements.")] = 10,
    keyset: Annotated[
        Path | None, typer.Option("--keyset", help="Signed keyset put here by hand: the newer one counts.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="State it once and end.")] = False,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """State every few seconds that the newest keyset is the newest. Ends when it is stopped.

    Example: agentfactory keys freshness run --key freshness.key --every 10
    """
    settings = read_settings(data_dir, target)
    authority = Authority(settings, FileSigner(key=read_private_key(key)), by_hand=keyset)
    if once:
        _tell(asyncio.run(authority.state()))
        return
    asyncio.run(authority.run(every, _tell))


class Authority:
    """Makes statements of the newest keyset that it has ever seen."""

    def __init__(self, settings: CliSettings, signer: FileSigner, *, by_hand: Path | None) -> None:
        self._settings = settings
        self._signer = signer
        self._by_hand = by_hand
        self._root = read_public_key(InstallationPaths(data_dir=settings.data_dir).root_public_key)
        self._seen: Keyset | None = None

    async def run(self, every: float, tell: Callable[[FreshnessStatement], None]) -> None:
        """State it again and again; a control plane that does not answer is asked again."""
        while True:
            try:
                tell(await self.state())
            except AgentFactoryError as error:
                output.note(f"no statement: {error} [{error.reason}]")
            await asyncio.sleep(every)

    async def state(self) -> FreshnessStatement:
        """Look for newer keysets, make one statement and hand it over.

        Raises:
            RollbackError: The control plane shows an older keyset than was seen: it keeps one back.
            UnknownKeyError: The newest keyset does not list this key.
            AgentFactoryError: As the control plane says.
        """
        from agentfactory.v1 import keys_pb2

        from cli.client import connect

        async with connect(self._settings) as client:
            newest_here = await self._newest(client)
            now = datetime.now(UTC)
            key_id = self._signer.key.key_id
            if key_id not in newest_here.keys_for(KeyPurpose.FRESHNESS, now):
                raise UnknownKeyError(f"keyset {newest_here.version} does not list {key_id} for freshness")
            statement = FreshnessStatement(
                installation=InstallationId(newest_here.installation),
                keyset_version=newest_here.version,
                issued_at=now,
            )
            request = keys_pb2.PublishFreshnessRequest(
                statement=await sign_statement(statement, self._signer)
            )
            await client.keys.PublishFreshness(request, timeout=client.timeout)
        return statement

    async def _newest(self, client: "Client") -> Keyset:
        rooted = await newest_rooted(client, self._root)
        found = rooted.keyset
        if self._by_hand is not None and self._by_hand.exists():
            by_hand = read_keyset(self._by_hand, self._root)
            if by_hand.version > found.version:
                raise RollbackError(
                    f"the control plane shows keyset {found.version}, {self._by_hand} is {by_hand.version}",
                    hint="publish it; if it was published, the control plane keeps it back",
                )
        if self._seen is not None and found.version < self._seen.version:
            raise RollbackError(f"the control plane shows keyset {found.version} after {self._seen.version}")
        self._seen, self._root = found, rooted.root
        return found


def _tell(statement: FreshnessStatement) -> None:
    if output.wants_json():
        output.data(
            {"keyset_version": statement.keyset_version, "issued_at": statement.issued_at.isoformat()}
        )
    else:
        output.note(f"keyset {statement.keyset_version} is the newest at {statement.issued_at.isoformat()}")
