"""`agentfactory policy export`: a policy as the bundle file that OPA servers take."""

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import output
from cli.output import Json
from cli.settings import DataDir, Target, read_settings
from shared.errors import MalformedError, PackageAlteredError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentfactory.v1 import policy_pb2

    from cli.client import Client
    from cli.settings import CliSettings
    from shared.digests import Digest


def export(
    folder: Annotated[Path | None, typer.Argument(help="Signed folder; absent: what is in force.")] = None,
    to: Annotated[Path, typer.Option("--output", help="File to write.")] = Path("agentfactory.tar.gz"),
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Write a bundle for OPA servers; its revision is the policy's digest. Tests stay out.

    Example: agentfactory policy export policy --output agentfactory.tar.gz
    """
    from shared.opa_bundle import opa_bundle
    from shared.policy_bundle import data_of, rules_of

    digest, files = _signed(folder) if folder else _in_force(read_settings(data_dir, target))
    to.write_bytes(opa_bundle(files=rules_of(files), data_json=data_of(files), digest=digest))
    if output.wants_json():
        output.data({"file": str(to), "revision": digest})
        return
    output.note(f"wrote {to}; give it to your OPA servers")
    print(digest)


def _signed(folder: Path) -> "tuple[Digest, Mapping[str, bytes]]":
    """Return what was signed; whether by a key that counts is checked when it is published."""
    from shared.digests import sha256_digest
    from shared.policy_bundle import decode_manifest, described
    from shared.policy_folder import read_envelope, read_folder

    files = read_folder(folder)
    try:
        payload = base64.b64decode(json.loads(read_envelope(folder))["payload"])
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedError(f"policy.dsse of {folder} is no signed policy") from error
    if decode_manifest(payload).files != described(files):
        raise PackageAlteredError(
            f"the files of {folder} are not those that were signed", hint="sign the policy again"
        )
    return sha256_digest(payload), files


def _in_force(settings: "CliSettings") -> "tuple[Digest, Mapping[str, bytes]]":
    from agentfactory.v1 import policy_pb2

    from cli.client import call
    from shared.digests import parse_digest

    async def use(client: "Client") -> "policy_pb2.GetPolicyBundleResponse":
        return await client.policy.GetPolicyBundle(
            policy_pb2.GetPolicyBundleRequest(), timeout=client.timeout
        )

    answer = call(settings, use)
    return parse_digest(answer.bundle.digest), {file.path: file.content for file in answer.files}
