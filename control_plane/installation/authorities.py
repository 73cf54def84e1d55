"""The certificate authority in use and the one that it replaces: which issues what, and until when.

A node pins the authority that issued the server's certificate, the servers those that issued nodes'. So a new
authority issues to nodes and callers at once, and to the servers only when nodes have had time to be given
the new `trust.json`: at half time. At the end what the old one issued is refused, because the certificate by
which it is pinned from then on ends there.
"""

from datetime import datetime, timedelta
from pathlib import Path

from control_plane.installation import files
from control_plane.keys.ca import BuiltinCertificateAuthority
from control_plane.keys.ports import IssuedCertificate
from shared.clock import Clock
from shared.errors import InvalidInputError, WrongStateError
from shared.ids import InstallationId
from shared.key_files import read_secret_file, write_secret_file
from shared.paths import InstallationPaths
from shared.rpc.tls import read_certificates
from shared.signatures import MAX_PEM_BYTES, PublicKey

Stamp = tuple[tuple[int, int], ...]


class InstallationAuthority:
    """Implements `CertificateAuthority` with the files of an installation, which it follows."""

    def __init__(self, paths: InstallationPaths, clock: Clock) -> None:
        """Read them.

        Raises:
            NotFoundError, KeyFileModeError, KeyFormatError: There is no authority that could be used.
        """
        self._paths = paths
        self._clock = clock
        self._stamp = self._stamps()
        self._issuing = files.read_authority(paths, clock)

    async def issue(self, csr_der: bytes, *, spiffe_id: str, ttl: timedelta) -> IssuedCertificate:
        """See `CertificateAuthority.issue`."""
        return await self.issuing().issue(csr_der, spiffe_id=spiffe_id, ttl=ttl)

    def issuing(self) -> BuiltinCertificateAuthority:
        """Return the authority that issues to nodes and callers.

        Raises:
            NotFoundError, KeyFileModeError, KeyFormatError: As the constructor, of what is there now.
        """
        stamp = self._stamps()
        if stamp != self._stamp:
            self._issuing = files.read_authority(self._paths, self._clock)
            self._stamp = stamp
        return self._issuing

    def of_server(self) -> BuiltinCertificateAuthority:
        """Return the authority that issues to the servers. Raises as `issuing`."""
        issuing, retiring = self.issuing(), read_retiring(self._paths, self._clock)
        if retiring is None or self._clock.now() >= _half_time(
            issuing, _pinned_until(self._paths, retiring, self._clock)
        ):
            return issuing
        return retiring

    def _stamps(self) -> Stamp:
        found = [path.stat() for path in (self._paths.ca_key, self._paths.ca_certificate) if path.exists()]
        return tuple((one.st_ino, one.st_mtime_ns) for one in found)


def rotate_authority(
    paths: InstallationPaths, installation: InstallationId, root: PublicKey, *, until: datetime, clock: Clock
) -> datetime:
    """Put a new authority beside the old one, whose certificates count until `until`. Running servers follow.

    Returns when the servers take certificates of the new one: by then every node has to have the new
    `trust.json`, and every gateway the new `ca.crt`. A repeat of an interrupted one uses the same key.

    Raises:
        InvalidInputError: `until` is not in the future.
        WrongStateError: The rotation before has not come to its end.
        NotFoundError, KeyFileModeError, KeyFormatError: There is no authority that could be replaced.
    """
    now = clock.now()
    if until <= now:
        raise InvalidInputError("the old authority has to count for a while yet")
    retiring = read_retiring(paths, clock)
    if retiring is not None and not paths.next_ca_key.exists():
        end = _pinned_until(paths, retiring, clock)
        if end > now:
            raise WrongStateError(f"the authority before the last counts until {end:%Y-%m-%d %H:%M} UTC yet")
        paths.retiring_ca_key.unlink()
    new = _next(paths, installation, clock)
    old = _retire(paths, clock)
    files.write_public_file(paths.ca_certificate, new.certificate_pem + old.ending(until).certificate_pem)
    files.write_trust(paths, installation, root, pinned_pem(paths))
    # From here on it issues. Before, the key in use finds its own certificate in that file too.
    paths.next_ca_key.replace(paths.ca_key)
    paths.next_ca_certificate.unlink()
    return _half_time(new, until)


def pinned_pem(paths: InstallationPaths) -> bytes:
    """Return the certificates that peers pin: of the authority in use, and of the one that it replaces."""
    return read_certificates(paths.ca_certificate)


def read_retiring(paths: InstallationPaths, clock: Clock) -> BuiltinCertificateAuthority | None:
    """Return the authority that was replaced last, as it was.

    Raises:
        KeyFileModeError, KeyFormatError: Its files are there and not usable.
    """
    if not paths.retiring_ca_key.exists():
        return None
    return _read(paths.retiring_ca_key, paths.retiring_ca_certificate, clock)


def _next(
    paths: InstallationPaths, installation: InstallationId, clock: Clock
) -> BuiltinCertificateAuthority:
    if not paths.next_ca_key.exists():
        made = BuiltinCertificateAuthority.create(installation=installation, clock=clock)
        files.write_public_file(paths.next_ca_certificate, made.certificate_pem)
        write_secret_file(paths.next_ca_key, made.key_pem)
    return _read(paths.next_ca_key, paths.next_ca_certificate, clock)


def _retire(paths: InstallationPaths, clock: Clock) -> BuiltinCertificateAuthority:
    if not paths.retiring_ca_key.exists():
        old = files.read_authority(paths, clock)
        files.write_public_file(paths.retiring_ca_certificate, old.certificate_pem)
        write_secret_file(paths.retiring_ca_key, old.key_pem)
    return _read(paths.retiring_ca_key, paths.retiring_ca_certificate, clock)


def _read(key: Path, certificate: Path, clock: Clock) -> BuiltinCertificateAuthority:
    return BuiltinCertificateAuthority.from_pem(
        key_pem=read_secret_file(key, max_bytes=MAX_PEM_BYTES),
        certificate_pem=read_certificates(certificate),
        clock=clock,
    )


def _pinned_until(paths: InstallationPaths, retiring: BuiltinCertificateAuthority, clock: Clock) -> datetime:
    """Return until when servers take what a replaced authority issued: the end of what pins it."""
    pinned = BuiltinCertificateAuthority.from_pem(
        key_pem=retiring.key_pem, certificate_pem=pinned_pem(paths), clock=clock
    )
    return pinned.ends_at


def _half_time(new: BuiltinCertificateAuthority, until: datetime) -> datetime:
    return new.begins_at + (until - new.begins_at) / 2
