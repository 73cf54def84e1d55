"""Who this node is: the files that enrollment wrote. Makes no key and talks to nobody."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from data_plane.files import replace_file
from shared.canonical import parse_strict
from shared.errors import KeyFormatError, MalformedError, NotFoundError
from shared.fields import Fields
from shared.ids import NODE, InstallationId, NodeId, parse_id
from shared.key_files import read_private_key, read_secret_file
from shared.paths import NodePaths
from shared.signatures import PrivateKey

FORMAT: Final = "agentfactory.node.v1"
MAX_FILE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The node's X.509 identity, as it is presented."""

    chain_pem: bytes = field(repr=False)
    """Leaf first."""
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """What an enrolled node holds."""

    node_id: NodeId
    installation: InstallationId
    receipt_key: PrivateKey
    tls_key_pem: bytes = field(repr=False)
    certificate: Certificate


def is_enrolled(paths: NodePaths) -> bool:
    """Whether enrollment has finished in this folder: its last file is there."""
    return paths.identity.is_file()


def read_identity(paths: NodePaths) -> NodeIdentity:
    """Return the identity in a node's folder.

    Raises:
        NotFoundError: The node is not enrolled, or a file is missing.
        KeyFileModeError: A private key may be read by others.
        KeyFormatError: A key or the certificate does not decode.
        MalformedError: `node.json` does not decode.
    """
    if not is_enrolled(paths):
        raise NotFoundError(
            f"there is no node identity in {paths.data_dir}",
            hint="enroll this node first: agentfactory node token, then python -m data_plane enroll",
        )
    fields = Fields(parse_strict(_read(paths.identity), max_bytes=MAX_FILE_BYTES), "node identity")
    if (found := fields.text("type")) != FORMAT:
        raise MalformedError(f"{paths.identity} is of format {found[:64]!r}, this build reads {FORMAT!r}")
    identity = NodeIdentity(
        node_id=parse_id(NODE, fields.text("node_id")),
        installation=InstallationId(fields.text("installation", max_chars=64)),
        receipt_key=read_private_key(paths.receipt_key),
        tls_key_pem=read_secret_file(paths.key, max_bytes=MAX_FILE_BYTES),
        certificate=read_certificate(paths.certificate),
    )
    fields.end()
    return identity


def read_certificate(path: Path) -> Certificate:
    """Return the certificate chain in a file.

    Raises:
        NotFoundError: There is no such file.
        KeyFormatError: It does not decode.
    """
    pem = _read(path)
    try:
        leaf = x509.load_pem_x509_certificates(pem)[0]
    except ValueError as error:
        raise KeyFormatError(f"certificate {path} does not decode: {error}") from error
    return Certificate(
        chain_pem=pem, not_before=leaf.not_valid_before_utc, not_after=leaf.not_valid_after_utc
    )


def check_certificate(chain_der: tuple[bytes, ...], *, tls_key_pem: bytes, spiffe_id: str) -> None:
    """Return if a chain that was issued is this node's. Nothing is replaced by one that is not.

    1. It decodes and is not empty.
    2. Its leaf is of this node's key.
    3. It names this node, by one URI.

    Who signed it is the control plane's TLS to say, at the next session.

    Raises:
        KeyFormatError: A check failed, or the key does not decode.
    """
    leaf = _decode(chain_der)[0]
    if _public_bytes(leaf.public_key()) != _public_bytes(load_tls_key(tls_key_pem).public_key()):
        raise KeyFormatError("check 2: the certificate that was issued is of another key")
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise KeyFormatError("check 3: the certificate that was issued names nobody") from error
    if found != [spiffe_id]:
        raise KeyFormatError(f"check 3: the certificate that was issued names {str(found)[:200]}")


def load_tls_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Return the node's TLS key.

    Raises:
        KeyFormatError: It is no unencrypted EC key.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise KeyFormatError("the node's tls key does not decode") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyFormatError("the node's tls key is not an elliptic-curve key")
    return key


def write_certificate(path: Path, chain_der: tuple[bytes, ...]) -> Certificate:
    """Store a chain, leaf first, whole or not at all, and return it. Whose it is, `check_certificate` says.

    Raises:
        KeyFormatError: It is empty or does not decode.
    """
    chain = _decode(chain_der)
    replace_file(path, b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain))
    return read_certificate(path)


def write_identity(paths: NodePaths, *, node_id: NodeId, installation: InstallationId) -> None:
    """Store who this node is; written last, so that a broken enrollment is none."""
    document = {"type": FORMAT, "node_id": node_id, "installation": installation}
    replace_file(paths.identity, json.dumps(document, indent=2).encode() + b"\n")


def _decode(chain_der: tuple[bytes, ...]) -> list[x509.Certificate]:
    try:
        chain = [x509.load_der_x509_certificate(der) for der in chain_der]
    except ValueError as error:
        raise KeyFormatError(f"the certificate that was issued does not decode: {error}") from error
    if not chain:
        raise KeyFormatError("no certificate was issued")
    return chain


def _public_bytes(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise KeyFormatError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return data
