"""Where receipts come from, and whom to trust in them: for the commands that read some."""

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.settings import CliSettings
from shared.errors import NotFoundError
from shared.paths import InstallationPaths

if TYPE_CHECKING:
    from agentfactory.v1 import audit_pb2

    from cli.client import Client
    from shared.verification.trust import ReceiptTrust

ASK_EVERY_SECONDS: Final = 0.1

Trust = Annotated[
    Path | None,
    typer.Option("--trust", help="Whom to trust (`trust export`); absent: what the data folder says."),
]


def fetch(
    settings: CliSettings, subject: str, wait: float = 0, trust: "ReceiptTrust | None" = None
) -> "audit_pb2.GetReceiptResponse":
    from cli.client import call

    return call(settings, lambda client: fetch_with(client, subject, wait, trust))


async def fetch_with(
    client: "Client", subject: str, wait: float = 0, trust: "ReceiptTrust | None" = None
) -> "audit_pb2.GetReceiptResponse":
    """Fetch a receipt by its own id or its execution's.

    For up to `wait` seconds until the log covers it and as many witnesses cosigned as are trusted to.
    """
    from agentfactory.v1 import audit_pb2

    from cli.evidence import is_complete, is_cosigned

    witnesses, quorum = ([], 0) if trust is None else ([one.name for one in trust.witnesses], trust.quorum)

    by_receipt = subject.startswith("rcp_")
    request = audit_pb2.GetReceiptRequest(
        receipt_id=subject if by_receipt else "", execution_id="" if by_receipt else subject
    )
    end = time.monotonic() + wait
    while True:
        answer = await client.audit.GetReceipt(request, timeout=client.timeout)
        done = is_complete(answer) and is_cosigned(answer, witnesses, quorum)
        if done or time.monotonic() >= end:
            return answer
        await asyncio.sleep(ASK_EVERY_SECONDS)


def local_trust(settings: CliSettings) -> "ReceiptTrust | None":
    """Return what the installation in the data folder trusts in receipts; None: there is none."""
    from cli.keysets import read_bounded, rooted
    from shared.trust import read_trust
    from shared.verification.trust import ReceiptTrust

    path = InstallationPaths(data_dir=settings.data_dir).trust
    if not path.exists():
        return None
    roots, keyset = read_trust(path), InstallationPaths(data_dir=settings.data_dir).keyset
    # The root in force may be a later one than the pinned one.
    root = rooted(read_bounded(keyset), roots.root_key).root if keyset.exists() else roots.root_key
    return ReceiptTrust(installation=roots.installation, root_keys=(root,))


def trust_of(settings: CliSettings, path: Path | None) -> "ReceiptTrust":
    """Return whom to trust: as the file says, or the installation in the data folder.

    Raises:
        NotFoundError: There is neither.
    """
    trusted = trust_or_none(settings, path)
    if trusted is None:
        raise NotFoundError(
            f"nobody is trusted: {settings.data_dir} is no installation",
            hint="name a trust file with --trust; its operator makes one with: agentfactory trust export",
        )
    return trusted


def trust_or_none(settings: CliSettings, path: Path | None) -> "ReceiptTrust | None":
    """Return the same, or None when there is neither."""
    from shared.verification.trust import read_receipt_trust

    return local_trust(settings) if path is None else read_receipt_trust(path)
