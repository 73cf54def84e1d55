"""The files of an installation: made once, whole or not at all, and read back. Holds no policy and no SQL."""

import contextlib
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control_plane.installation.domain import (
    CLIENT_CERTIFICATE_LIFE,
    CONTROL_PLANE_SERVICE,
    RENEW_BELOW,
    SERVER_CERTIFICATE_LIFE,
)
from control_plane.keys.ca import (
    BuiltinCertificateAuthority,
    chain_pem,
    general_name,
    new_private_key,
    private_key_pem,
)
from shared.canonical import parse_strict
from shared.clock import Clock
from shared.errors import AlreadyExistsError, KeyFormatError, MalformedError, NotFoundError
from shared.ids import InstallationId, KeyId
from shared.key_files import (
    read_private_key,
    read_public_key,
    read_secret_file,
    write_private_key,
    write_secret_file,
)
from shared.local_tokens import key_set
from shared.paths import InstallationPaths
from shared.rpc.identity import SpiffeId
from shared.signatures import PrivateKey, PublicKey
from shared.trust import TrustRoots, encode_trust

DESCRIPTION_FORMAT: Final = "agentfactory.installation.v1"
PUBLIC_FILE_MODE: Final = 0o644
MAX_PEM_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallationDescription:
    """What an installation says of itself in `installation.json`."""

    installation: InstallationId
    root_key_id: KeyId
    order_key_id: KeyId
    server_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallationKeys:
    """The signing keys of an installation whose root key is on this machine."""

    root: PrivateKey
    order: PrivateKey
    policy: PrivateKey
    log: PrivateKey


def write_public_file(path: Path, data: bytes) -> None:
    """Store bytes that anybody may read, whole or not at all; replaces what is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PUBLIC_FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def ensure_keys(paths: InstallationPaths) -> InstallationKeys:
    """Return the signing keys, making those that are missing.

    Raises:
        KeyFileModeError: A key file may be read by others.
        KeyFormatError: A key file does not decode.
    """
    return InstallationKeys(
        root=ensure_key(paths.root_key, PrivateKey.generate_ed25519),
        order=ensure_key(paths.order_key, PrivateKey.generate_rsa),
        policy=ensure_key(paths.policy_key, PrivateKey.generate_ed25519),
        log=ensure_key(paths.log_key, PrivateKey.generate_ed25519),
    )


def ensure_token_issuer(paths: InstallationPaths) -> None:
    """Make the key with which tokens are signed on this machine, and publish its public half.

    Raises:
        KeyFileModeError: The key file may be read by others.
        KeyFormatError: The key file does not decode.
    """
    key = ensure_key(paths.token_key, PrivateKey.generate_ed25519)
    write_public_file(paths.token_keys, key_set(key.public))


def ensure_key(path: Path, generate: Callable[[], PrivateKey]) -> PrivateKey:
    """Return the key in a file, making it when there is none."""
    try:
        return read_private_key(path)
    except NotFoundError:
        if path.exists():
            raise
    # If another process was first, its key is the one.
    with contextlib.suppress(AlreadyExistsError):
        write_private_key(path, generate())
    return read_private_key(path)


def ensure_authority(
    paths: InstallationPaths, installation: InstallationId, clock: Clock
) -> BuiltinCertificateAuthority:
    """Return the certificate authority, making it when there is none.

    Raises:
        KeyFileModeError: Its key may be read by others.
        KeyFormatError: Key and certificate do not decode or do not belong together.
    """
    if not paths.ca_key.exists():
        made = BuiltinCertificateAuthority.create(installation=installation, clock=clock)
        # The certificate first: a key without one could not be repaired.
        write_public_file(paths.ca_certificate, made.certificate_pem)
        write_secret_file(paths.ca_key, made.key_pem)
    return read_authority(paths, clock)


def read_authority(paths: InstallationPaths, clock: Clock) -> BuiltinCertificateAuthority:
    """Return the certificate authority that is there.

    Raises:
        NotFoundError: There is none.
        KeyFileModeError: Its key may be read by others.
        KeyFormatError: Key and certificate do not decode or do not belong together.
    """
    key_pem = read_secret_file(paths.ca_key, max_bytes=MAX_PEM_BYTES)
    try:
        certificate_pem = paths.ca_certificate.read_bytes()
    except OSError as error:
        raise NotFoundError(f"cannot read {paths.ca_certificate}: {error.strerror}") from error
    return BuiltinCertificateAuthority.from_pem(key_pem=key_pem, certificate_pem=certificate_pem, clock=clock)


def ensure_server_certificate(
    paths: InstallationPaths,
    installation: InstallationId,
    authority: BuiltinCertificateAuthority,
    *,
    server_names: tuple[str, ...],
    clock: Clock,
) -> bool:
    """Issue the control plane's certificate when it is missing or near its end; returns whether it did."""
    identity = SpiffeId(installation=installation, kind="service", name=CONTROL_PLANE_SERVICE)
    return _ensure_certificate(
        paths.server_certificate,
        paths.server_key,
        authority,
        identity=str(identity),
        life=SERVER_CERTIFICATE_LIFE,
        server_names=server_names,
        clock=clock,
    )


def ensure_client_certificate(
    paths: InstallationPaths,
    installation: InstallationId,
    authority: BuiltinCertificateAuthority,
    *,
    name: str,
    clock: Clock,
) -> str:
    """Issue a caller's certificate when it is missing or near its end; returns the caller's identity."""
    identity = str(SpiffeId(installation=installation, kind="caller", name=name))
    _ensure_certificate(
        paths.client_certificate(name),
        paths.client_key(name),
        authority,
        identity=identity,
        life=CLIENT_CERTIFICATE_LIFE,
        server_names=(),
        clock=clock,
    )
    return identity


def write_trust(
    paths: InstallationPaths, installation: InstallationId, root: PublicKey, ca_pem: bytes
) -> None:
    """Write what nodes pin: beside the installation for copying, and into the local node's directory."""
    content = encode_trust(TrustRoots(installation=installation, root_key=root, ca_certificate_pem=ca_pem))
    write_public_file(paths.trust, content)
    write_public_file(paths.node.trust, content)


def write_description(paths: InstallationPaths, description: InstallationDescription) -> None:
    """Write what an installation says of itself; nothing secret."""
    document = {"type": DESCRIPTION_FORMAT, **asdict(description)}
    write_public_file(paths.description, json.dumps(document, indent=2).encode() + b"\n")


def read_server_names(paths: InstallationPaths) -> tuple[str, ...]:
    """Return the names that `init` was given for the server's certificate.

    Raises:
        NotFoundError: There is no installation here.
        MalformedError: Its description is damaged.
    """
    try:
        document = parse_strict(paths.description.read_bytes(), max_bytes=MAX_PEM_BYTES)
    except OSError as error:
        raise NotFoundError(
            f"cannot read {paths.description}: {error.strerror}", hint="run 'agentfactory init'"
        ) from error
    names = document.get("server_names")
    if document.get("type") != DESCRIPTION_FORMAT or not isinstance(names, list) or not names:
        raise MalformedError(f"{paths.description} is not of format {DESCRIPTION_FORMAT} or names no server")
    return tuple(str(name) for name in names)


def ensure_root_pin(paths: InstallationPaths, root: PublicKey) -> PublicKey:
    """Return the root key that is pinned here, pinning this one when there is none."""
    if not paths.root_public_key.exists():
        write_public_file(paths.root_public_key, root.to_pem())
    return read_root_key(paths)


def read_root_key(paths: InstallationPaths) -> PublicKey:
    """Return the root's public key.

    Raises:
        NotFoundError: There is no installation here.
    """
    return read_public_key(paths.root_public_key)


def _ensure_certificate(
    path: Path,
    key_path: Path,
    authority: BuiltinCertificateAuthority,
    *,
    identity: str,
    life: timedelta,
    server_names: tuple[str, ...],
    clock: Clock,
) -> bool:
    key = _ensure_leaf_key(key_path)
    names = tuple(general_name(name) for name in server_names)
    if not _needs_renewal(path, key.public_key(), names, authority, life=life, clock=clock):
        return False
    issued = authority.sign_leaf(key.public_key(), spiffe_id=identity, ttl=life, server_names=server_names)
    write_public_file(path, chain_pem(issued.chain_der))
    return True


def _ensure_leaf_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        with contextlib.suppress(AlreadyExistsError):
            write_secret_file(path, private_key_pem(new_private_key()))
    try:
        key = serialization.load_pem_private_key(
            read_secret_file(path, max_bytes=MAX_PEM_BYTES), password=None
        )
    except (ValueError, TypeError) as error:
        raise KeyFormatError(f"{path} is not a private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyFormatError(f"{path} is not an EC key")
    return key


def _needs_renewal(
    path: Path,
    key: ec.EllipticCurvePublicKey,
    names: tuple[x509.GeneralName, ...],
    authority: BuiltinCertificateAuthority,
    *,
    life: timedelta,
    clock: Clock,
) -> bool:
    try:
        chain = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return True
    leaf = chain[0]
    return (
        leaf.public_key() != key
        or _server_names(leaf) != set(names)
        or chain[-1].public_bytes(serialization.Encoding.PEM) != authority.certificate_pem
        or leaf.not_valid_after_utc - clock.now() < life * RENEW_BELOW
    )


def _server_names(leaf: x509.Certificate) -> set[x509.GeneralName]:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {name for name in names if not isinstance(name, x509.UniformResourceIdentifier)}
