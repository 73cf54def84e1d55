"""`agentfactory trust …`: the file by which others verify receipts of this installation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import output
from cli.output import Json
from cli.settings import DataDir, read_settings
from shared.paths import InstallationPaths

if TYPE_CHECKING:
    from shared.verification.trust import ReceiptTrust

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Whom others trust in receipts.")


@app.callback()
def root() -> None:
    """Whom others trust in receipts."""


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the trust file here.")],
    witness: Annotated[
        list[str] | None,
        typer.Option("--witness", help="A witness' verifier key, <name>+<hash>+<base64>; may be repeated."),
    ] = None,
    quorum: Annotated[
        int,
        typer.Option("--quorum", min=0, help="So many of them must have cosigned a receipt's checkpoint."),
    ] = 0,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write whom a verifier trusts: root key, log and its keys, witnesses. Reads this data folder only.

    Hand it over by another way than the receipts: whoever makes both can make both say anything.

    Example: agentfactory trust export -o trust.json --witness 'w.example+1a2b3c4d+BA…' --quorum 1
    """
    from shared.verification.trust import encode_receipt_trust

    trust = trust_of(InstallationPaths(data_dir=read_settings(data_dir).data_dir), witness or [], quorum)
    out.write_bytes(encode_receipt_trust(trust))
    said = {
        "installation": trust.installation,
        "root_key_ids": [key.key_id for key in trust.root_keys],
        "logs": [one.name for one in trust.logs],
        "log_key_ids": [one.public.key_id for one in trust.logs],
        "witnesses": [one.name for one in trust.witnesses],
        "quorum": trust.quorum,
    }
    if output.wants_json():
        output.data(said)
        return
    output.fields((name.replace("_", " "), _line(value)) for name, value in said.items())
    output.note(f"wrote {out}: hand it over by another way than the receipts, and compare the fingerprints")


MAX_EPOCHS: Final = 8
"""Of which the logs are named."""


def trust_of(paths: InstallationPaths, witnesses: list[str], quorum: int) -> "ReceiptTrust":
    """Return what the installation's folder says: the root in force, and the logs of the keyset beside it.

    Raises:
        NotFoundError: There is no installation in the folder.
        VerificationError: Its keyset is not signed by its root key or one that followed; or a witness' key is
            malformed.
        InvalidInputError: A witness is named twice, or the quorum is more than there are.
    """
    from cli.keysets import read_bounded, rooted
    from shared.checkpoints import ED25519, VerifierKey, log_origin, parse_verifier_key
    from shared.keyset import KeyPurpose
    from shared.trust import read_trust
    from shared.verification.trust import ReceiptTrust

    roots = read_trust(paths.trust)
    found = rooted(read_bounded(paths.keyset), roots.root_key)
    keyset = found.keyset
    # Of epochs before a restore too: their checkpoints are in receipts that were handed over then.
    epochs = range(max(1, keyset.epoch - MAX_EPOCHS + 1), keyset.epoch + 1)
    return ReceiptTrust(
        installation=roots.installation,
        root_keys=(found.root,),
        minimum_keyset_version=keyset.version,
        logs=tuple(
            VerifierKey(name=log_origin(keyset.installation, epoch), kind=ED25519, public=entry.key)
            for epoch in epochs
            for entry in keyset.entries
            if entry.purpose is KeyPurpose.LOG
        ),
        witnesses=tuple(parse_verifier_key(text) for text in witnesses),
        quorum=quorum,
    )


def _line(value: object) -> object:
    return ", ".join(value) if isinstance(value, list) else value
