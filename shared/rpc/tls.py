"""TLS credentials from files, for both ends. A server notices rotated files at the next handshake.

Owns how files become credentials; which identities are let in is decided per RPC.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from shared.errors import KeyFormatError, NotFoundError
from shared.key_files import read_secret_file
from shared.logs import get_logger

MAX_CREDENTIAL_BYTES: Final = 64 * 1024

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """One identity on disk, and the authority that peers are verified with."""

    certificate: Path
    """Leaf first, PEM."""
    key: Path
    """Mode 0600."""
    authority: Path


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """Return a client's side of mutual TLS.

    Raises:
        NotFoundError: A file is missing.
        KeyFileModeError: The key may be read by others.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=read_certificates(files.authority),
        private_key=read_secret_file(files.key, max_bytes=MAX_CREDENTIAL_BYTES),
        certificate_chain=read_certificates(files.certificate),
    )


def read_authority(files: TlsFiles) -> bytes:
    """Return the certificate of the authority that peers are verified with, PEM.

    Raises:
        NotFoundError: It is missing.
    """
    return read_certificates(files.authority)


def server_only_channel_credentials(authority_pem: bytes) -> grpc.ChannelCredentials:
    """Return credentials of a client without an identity: it verifies the server and names nobody."""
    return grpc.ssl_channel_credentials(root_certificates=authority_pem)


def server_credentials(files: TlsFiles, *, require_client: bool) -> grpc.ServerCredentials:
    """Return a server's credentials that follow the files: a rotated certificate serves the next handshake.

    With `require_client`, a peer without a certificate of the authority does not get through the handshake.

    Raises:
        NotFoundError: A file is missing.
        KeyFileModeError: The key may be read by others.
        KeyFormatError: Key and certificate are not usable.
    """
    source = _Reloader(files, require_client=require_client)
    return grpc.dynamic_ssl_server_credentials(
        source.initial,
        source.fetch,  # type: ignore[arg-type]  # None is documented: go on with the one in use
        require_client_authentication=require_client,
    )


class _Reloader:
    """Reads the files again when one of them changed. `fetch` runs in gRPC's handshake threads."""

    def __init__(self, files: TlsFiles, *, require_client: bool) -> None:
        self._files = files
        self._require_client = require_client
        self._lock = threading.Lock()
        self._stamp = self._stamps()
        self.initial = self._load()

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration, or None to go on with the one in use."""
        with self._lock:
            try:
                stamp = self._stamps()
                if stamp == self._stamp:
                    return None
                configuration = self._load()
            except Exception:
                # Half-written or broken files must not end a server whose certificate still works.
                logger.exception("rotated certificate not loaded", certificate=str(self._files.certificate))
                return None
            self._stamp = stamp
            logger.info("rotated certificate loaded", certificate=str(self._files.certificate))
            return configuration

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        paths = (self._files.certificate, self._files.key, self._files.authority)
        try:
            return tuple((found.st_ino, found.st_mtime_ns) for found in (path.stat() for path in paths))
        except OSError as error:
            raise NotFoundError(f"cannot read {error.filename}: {error.strerror}") from error

    def _load(self) -> grpc.ServerCertificateConfiguration:
        pair = (
            read_secret_file(self._files.key, max_bytes=MAX_CREDENTIAL_BYTES),
            read_certificates(self._files.certificate),
        )
        authority = read_certificates(self._files.authority) if self._require_client else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)


def read_certificates(path: Path) -> bytes:
    """Return the certificates in a file, PEM.

    Raises:
        NotFoundError: It is missing.
        KeyFormatError: It is larger than `MAX_CREDENTIAL_BYTES`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CREDENTIAL_BYTES + 1)
    except OSError as error:
        raise NotFoundError(
            f"cannot read {path}: {error.strerror}", hint="run 'agentfactory init' or name its --data-dir"
        ) from error
    if len(data) > MAX_CREDENTIAL_BYTES:
        raise KeyFormatError(f"{path} is larger than {MAX_CREDENTIAL_BYTES} bytes")
    return data
