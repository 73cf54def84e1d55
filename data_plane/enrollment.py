"""Makes a node's keys and exchanges a one-time token for its certificate.

Private keys are made here and never leave. The token is a secret: it is passed on, never kept or logged.
"""

import asyncio
from datetime import datetime, timedelta
from typing import Final

import grpc
from agentfactory.v1 import nodes_pb2, nodes_pb2_grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from data_plane.files import replace_file
from data_plane.identity import (
    Certificate,
    check_certificate,
    is_enrolled,
    load_tls_key,
    write_certificate,
    write_identity,
)
from shared.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    NotFoundError,
    VerificationError,
)
from shared.ids import NODE, NodeId, parse_id
from shared.key_files import read_private_key, read_secret_file, write_private_key, write_secret_file
from shared.paths import NodePaths
from shared.rpc.channel import connect
from shared.rpc.errors import error_of
from shared.rpc.identity import node_spiffe_id
from shared.rpc.tls import server_only_channel_credentials
from shared.signatures import PrivateKey
from shared.trust import TrustRoots, encode_trust, read_trust

ENROLL_DEADLINE: Final = timedelta(seconds=20)
MAX_KEY_BYTES: Final = 16 * 1024
RENEW_AFTER: Final = 2 / 3
"""Part of a certificate's life after which it is renewed."""

PROOF_DOMAIN: Final = b"agentfactory-enroll-v1"


async def enroll(*, paths: NodePaths, trust: TrustRoots, target: str, token: str, zone: str = "") -> NodeId:
    """Give this folder a node identity and return its id.

    Keys that an interrupted enrollment left are used again; the token is used only when it succeeds.

    Raises:
        AlreadyExistsError: The folder has an identity, or pins other trust roots than the given ones.
        EnrollmentTokenInvalidError: The token is unknown, used or expired, or for another zone.
        UnavailableError, DeadlineExceededError: The control plane does not answer.
        VerificationError: It answers for another installation than the pinned one.
        KeyFormatError: It issues a certificate that is not of this node and its key.
    """
    if is_enrolled(paths):
        raise AlreadyExistsError(
            f"{paths.data_dir} has a node identity already", hint="use another folder, or remove this one"
        )
    await asyncio.to_thread(_prepare_folder, paths, trust)
    tls_key = await asyncio.to_thread(_tls_key, paths)
    receipt_key = await asyncio.to_thread(_receipt_key, paths)
    csr = make_csr(tls_key)
    request = nodes_pb2.EnrollNodeRequest(
        token=token,
        csr_der=csr,
        receipt_public_key=receipt_key.public.spki_der,
        receipt_key_proof=receipt_key.sign(PROOF_DOMAIN + csr),
        zone=zone,
    )
    response = await _enroll_at(target, trust, request)
    if response.installation != trust.installation:
        raise VerificationError(
            f"{target} is of installation {response.installation[:64]!r}, pinned is {trust.installation!r}"
        )
    node_id = parse_id(NODE, response.node_id)
    chain = tuple(response.certificate_chain_der)
    check_certificate(
        chain,
        tls_key_pem=await asyncio.to_thread(read_secret_file, paths.key, max_bytes=MAX_KEY_BYTES),
        spiffe_id=node_spiffe_id(trust.installation, node_id),
    )
    await asyncio.to_thread(write_certificate, paths.certificate, chain)
    await asyncio.to_thread(write_identity, paths, node_id=node_id, installation=trust.installation)
    return node_id


def make_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a PKCS#10 request, DER, that names nothing: the issuer says who the key belongs to."""
    builder = x509.CertificateSigningRequestBuilder(subject_name=x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def renewal_due_at(certificate: Certificate) -> datetime:
    """Return when to renew a certificate: after two thirds of its life."""
    return certificate.not_before + (certificate.not_after - certificate.not_before) * RENEW_AFTER


async def _enroll_at(
    target: str, trust: TrustRoots, request: nodes_pb2.EnrollNodeRequest
) -> nodes_pb2.EnrollNodeResponse:
    credentials = server_only_channel_credentials(trust.ca_certificate_pem)
    async with connect(target, credentials) as channel:
        stub = nodes_pb2_grpc.NodeServiceStub(channel)
        try:
            response: nodes_pb2.EnrollNodeResponse = await stub.EnrollNode(
                request, timeout=ENROLL_DEADLINE.total_seconds(), wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            typed = error_of(error)
            if isinstance(typed, DeadlineExceededError):
                raise DeadlineExceededError(
                    f"{target} did not answer within {ENROLL_DEADLINE.total_seconds():g} s",
                    hint="check the address and that the control plane runs",
                ) from error
            raise typed from error
    return response


def _prepare_folder(paths: NodePaths, trust: TrustRoots) -> None:
    paths.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = encode_trust(trust)
    if not paths.trust.exists():
        replace_file(paths.trust, wanted)
    elif read_trust(paths.trust) != trust:
        # The node would run under the older one: an enrollment that cannot work is refused before it is made.
        raise AlreadyExistsError(
            f"{paths.trust} pins other trust roots than the ones given",
            hint="remove it if it is the wrong one, or use another folder",
        )


def _tls_key(paths: NodePaths) -> ec.EllipticCurvePrivateKey:
    try:
        return load_tls_key(read_secret_file(paths.key, max_bytes=MAX_KEY_BYTES))
    except NotFoundError:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_secret_file(paths.key, pem)
        return key


def _receipt_key(paths: NodePaths) -> PrivateKey:
    try:
        return read_private_key(paths.receipt_key)
    except NotFoundError:
        key = PrivateKey.generate_ed25519()
        write_private_key(paths.receipt_key, key)
        return key
