"""The built-in certificate authority: one EC P-256 key, short-lived leaves with SPIFFE ids.

Owns X.509; decides nothing about who gets a certificate. Names in a request are ignored: the caller of
`issue` says which identity the key gets.
"""

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.keys.ports import IssuedCertificate
from shared.clock import Clock
from shared.errors import InvalidInputError, KeyFormatError

AUTHORITY_LIFE: Final = timedelta(days=3650)
MAX_LEAF_LIFE: Final = timedelta(days=398)
BACKDATE: Final = timedelta(seconds=30)
"""A new certificate is valid from a little earlier: the peer's clock may be behind."""

MIN_RSA_BITS: Final = 2048

_Key = ec.EllipticCurvePrivateKey
_LeafKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def new_private_key() -> _Key:
    """Return a fresh EC P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_key_pem(key: _Key) -> bytes:
    """Return the key as unencrypted PKCS#8 PEM, for a file of mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_csr(key: _Key) -> bytes:
    """Return a PKCS#10 request, DER, that proves possession of the key and names nothing."""
    return (
        x509.CertificateSigningRequestBuilder(subject_name=x509.Name([]))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def chain_pem(chain_der: Sequence[bytes]) -> bytes:
    """Return certificates as one PEM text, in their order."""
    return b"".join(
        x509.load_der_x509_certificate(one).public_bytes(serialization.Encoding.PEM) for one in chain_der
    )


class BuiltinCertificateAuthority:
    """Implements `CertificateAuthority` with a key in memory."""

    def __init__(self, *, key: _Key, certificate: x509.Certificate, clock: Clock) -> None:
        self._key = key
        self._certificate = certificate
        self._clock = clock

    @classmethod
    def create(cls, *, installation: str, clock: Clock) -> "BuiltinCertificateAuthority":
        """Make a new authority: a fresh key and its self-signed certificate."""
        key = new_private_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{installation} CA"[:64])])
        now = clock.now()
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{installation}")])
        certificate = _self_signed(key, name, names, begin=now - BACKDATE, end=now + AUTHORITY_LIFE)
        return cls(key=key, certificate=certificate, clock=clock)

    def ending(self, at: datetime) -> "BuiltinCertificateAuthority":
        """Return the same authority with a certificate that ends at `at`, if it does not end before.

        To whoever pins that one, what the authority issued counts until then and no longer.
        """
        names = self._certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        certificate = _self_signed(
            self._key,
            self._certificate.subject,
            names,
            begin=self._certificate.not_valid_before_utc,
            end=min(at, self._certificate.not_valid_after_utc),
        )
        return BuiltinCertificateAuthority(key=self._key, certificate=certificate, clock=self._clock)

    @property
    def begins_at(self) -> datetime:
        """Begin of its certificate."""
        return self._certificate.not_valid_before_utc

    @property
    def ends_at(self) -> datetime:
        """End of its certificate."""
        return self._certificate.not_valid_after_utc

    @classmethod
    def from_pem(
        cls, *, key_pem: bytes, certificate_pem: bytes, clock: Clock
    ) -> "BuiltinCertificateAuthority":
        """Load an authority that exists; beside its certificate there may be one that it replaces.

        Raises:
            KeyFormatError: Key or certificate do not decode, or do not belong together.
        """
        try:
            key = serialization.load_pem_private_key(key_pem, password=None)
            certificates = x509.load_pem_x509_certificates(certificate_pem)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KeyFormatError("the certificate authority's key or certificate does not decode") from error
        own = (one for one in certificates if one.public_key() == key.public_key())
        if not isinstance(key, _Key) or (certificate := next(own, None)) is None:
            raise KeyFormatError("the certificate authority's key and certificate do not belong together")
        return cls(key=key, certificate=certificate, clock=clock)

    @property
    def certificate_pem(self) -> bytes:
        """The authority's own certificate: what peers pin."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The authority's private key, for a file of mode 0600."""
        return private_key_pem(self._key)

    async def issue(self, csr_der: bytes, *, spiffe_id: str, ttl: timedelta) -> IssuedCertificate:
        """Return a client certificate for the key in a PKCS#10 request; its names are ignored.

        Raises:
            InvalidInputError: The request does not decode, is not signed by its own key, or its key is
                refused.
        """
        return self.sign_leaf(_csr_key(csr_der), spiffe_id=spiffe_id, ttl=ttl)

    def sign_leaf(
        self, key: _LeafKey, *, spiffe_id: str, ttl: timedelta, server_names: Sequence[str] = ()
    ) -> IssuedCertificate:
        """Return a certificate for this key: a client's, and a server's under these names.

        `server_names` are DNS names or IP addresses. A life above 398 days is cut, and none outlives the
        authority.
        """
        now = self._clock.now()
        expires_at = min(now + min(ttl, MAX_LEAF_LIFE), self._certificate.not_valid_after_utc)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id)]
        if server_names:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
            names.extend(general_name(name) for name in server_names)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(expires_at)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            # Critical because the subject is empty (RFC 5280 section 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return IssuedCertificate(
            spiffe_id=spiffe_id,
            serial=format(certificate.serial_number, "x"),
            chain_der=(
                certificate.public_bytes(serialization.Encoding.DER),
                self._certificate.public_bytes(serialization.Encoding.DER),
            ),
            expires_at=_whole_seconds(expires_at),
        )


def _self_signed(
    key: _Key, name: x509.Name, names: x509.SubjectAlternativeName, *, begin: datetime, end: datetime
) -> x509.Certificate:
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )


def _csr_key(csr_der: bytes) -> _LeafKey:
    try:
        request = x509.load_der_x509_csr(csr_der)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise InvalidInputError("the certificate request is not a PKCS#10 request in DER") from error
    if not signed:
        raise InvalidInputError("the certificate request is not signed by its own key")
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return key
    raise InvalidInputError(
        f"the key of a certificate request is EC P-256, P-384 or RSA of {MIN_RSA_BITS} bits or more"
    )


def general_name(name: str) -> x509.GeneralName:
    """Return an address or a DNS name as certificates carry it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _whole_seconds(at: datetime) -> datetime:
    # X.509 times have no fractions.
    return at.replace(microsecond=0)
