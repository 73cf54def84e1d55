"""Fetches what a replay needs with the caller's own rights, and writes it into a bundle."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli import output
from cli.output import Json
from cli.receipt_source import Trust, fetch_with
from cli.settings import DataDir, Target, read_settings
from shared.errors import (
    InvalidInputError,
    MalformedError,
    NotFoundError,
    PackageTooLargeError,
    PermissionDeniedError,
    PolicyDeniedError,
)

if TYPE_CHECKING:
    from agentfactory.v1 import audit_pb2

    from cli.client import Client
    from data_plane.replay.bundle import Bundle
    from data_plane.replay.domain import Material
    from shared.orders import Order

WAIT_SECONDS: Final = 10.0
"""For the log to cover a receipt."""
MAX_MATERIAL_BYTES: Final = 128 * 1024 * 1024


def bundle(
    subject: Annotated[str, typer.Argument(help="exe_…, or rcp_… of its deciding receipt.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the bundle to this file.")],
    trust: Trust = None,
    data_dir: DataDir = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Put a receipt and everything that a replay needs into one file, which needs no control plane.

    It holds input and output: whoever has the file can read them.

    Example: agentfactory receipt bundle exe_… -o execution.bundle
    """
    from cli.client import Client, call
    from cli.replay_receipt import verified
    from data_plane.replay.bundle import write_bundle
    from shared.digests import sha256_digest

    settings = read_settings(data_dir, target)

    async def use(client: Client) -> "tuple[Bundle, str]":
        receipt = receipt_file_of(await fetch_with(client, subject, WAIT_SECONDS))
        order = verified(settings, receipt, trust).order
        return await fetch_bundle(client, order, receipt), order.execution_id

    made, execution_id = call(settings, use)
    data = write_bundle(made)
    try:
        out.write_bytes(data)
    except OSError as error:
        raise InvalidInputError(f"cannot write {out}: {error.strerror}") from error
    parts = [str(name) for name in made.material.bodies]
    if output.wants_json():
        output.data(
            {
                "file": str(out),
                "execution_id": execution_id,
                "size_bytes": len(data),
                "digest": sha256_digest(data),
                "bodies": parts,
                "has_policy": bool(made.policy),
            }
        )
        return
    policy = "its policy" if made.policy else "no policy (you may not see it)"
    output.note(f"wrote {out}: receipt, module, parameters, {', '.join(parts)}, {policy}")


async def fetch_bundle(client: "Client", order: "Order", receipt: bytes) -> "Bundle":
    """Fetch what belongs to a verified order; `receipt` is its file."""
    from data_plane.replay.bundle import Bundle

    material = await fetch_material(client, order.execution_id)
    return Bundle(receipt=receipt, material=material, policy=await fetch_policy(client, order))


async def fetch_material(client: "Client", execution_id: str) -> "Material":
    """Download module, parameters and bodies.

    Raises:
        NotFoundError: There is no such execution, or its module or parameters are gone.
        PackageTooLargeError: More comes than executions are made of.
        MalformedError: What comes is not what was announced.
    """
    from agentfactory.v1 import replay_pb2 as pb

    from data_plane.replay.domain import Material, PartName, SaltedBody

    names = {
        pb.REPLAY_PART_KIND_INPUT: PartName.INPUT,
        pb.REPLAY_PART_KIND_OUTPUT: PartName.OUTPUT,
        pb.REPLAY_PART_KIND_LOG: PartName.LOG,
        pb.REPLAY_PART_KIND_RECORDING: PartName.RECORDING,
    }
    headers: list[pb.ReplayPart] = []
    contents: list[bytearray] = []
    total = 0
    request = pb.DownloadReplayMaterialRequest(execution_id=execution_id)
    async for piece in client.replay.DownloadReplayMaterial(request, timeout=10 * client.timeout):
        if piece.HasField("part"):
            headers.append(piece.part)
            contents.append(bytearray())
            continue
        total += len(piece.chunk)
        if not contents or total > MAX_MATERIAL_BYTES:
            raise PackageTooLargeError(f"the material of {execution_id} has no header or too many bytes")
        contents[-1] += piece.chunk
    parts = {header.kind: bytes(content) for header, content in zip(headers, contents, strict=True)}
    if any(header.size_bytes != len(parts[header.kind]) for header in headers):
        raise MalformedError(f"the material of {execution_id} is not as long as announced")
    for kind, name in (
        (pb.REPLAY_PART_KIND_MODULE, "module"),
        (pb.REPLAY_PART_KIND_PARAMETERS, "parameters"),
    ):
        if kind not in parts:
            raise NotFoundError(f"the {name} of {execution_id} is not there any more")
    return Material(
        module=parts[pb.REPLAY_PART_KIND_MODULE],
        parameters=parts[pb.REPLAY_PART_KIND_PARAMETERS],
        bodies={
            names[header.kind]: SaltedBody(content=parts[header.kind], salt=header.salt)
            for header in headers
            if header.kind in names
        },
    )


async def fetch_policy(client: "Client", order: "Order") -> bytes:
    """Return the policy that decided, as bundles carry it; empty where the caller may not see it."""
    import grpc
    from agentfactory.v1 import policy_pb2

    from cli.replay_policy import encode_policy
    from shared.rpc.errors import error_of

    request = policy_pb2.GetPolicyBundleRequest(bundle=policy_pb2.PolicyBundleRef(digest=order.policy_digest))
    try:
        return encode_policy(await client.policy.GetPolicyBundle(request, timeout=client.timeout))
    except grpc.aio.AioRpcError as error:
        with suppress(PermissionDeniedError, PolicyDeniedError, NotFoundError):
            raise error_of(error) from error
        return b""


def receipt_file_of(answer: "audit_pb2.GetReceiptResponse") -> bytes:
    """Return the receipt file of an answer."""
    from cli.evidence import file_of
    from shared.receipt_file import encode_receipt_file

    return encode_receipt_file(file_of(answer))
