"""The built-in authority: what a certificate says, and which requests are refused."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.keys.ca import (
    BuiltinCertificateAuthority,
    chain_pem,
    make_csr,
    new_private_key,
)
from shared.errors import InvalidInputError, KeyFormatError
from tests.fakes.clock import FakeClock

IDENTITY = "spiffe://local/node/nod_1"
DAY = timedelta(hours=24)


@pytest.fixture
def authority():
    return BuiltinCertificateAuthority.create(installation="local", clock=FakeClock())


def leaf(issued) -> x509.Certificate:
    return x509.load_der_x509_certificate(issued.chain_der[0])


def names(certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


async def test_a_certificate_names_the_identity_it_was_given_and_nothing_of_the_request(authority):
    key = new_private_key()
    request = (
        x509.CertificateSigningRequestBuilder(
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spiffe://local/caller/admin")])
        )
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier("spiffe://local/caller/admin"), x509.DNSName("localhost")]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
    certificate = leaf(await authority.issue(request, spiffe_id=IDENTITY, ttl=DAY))
    assert names(certificate).get_values_for_type(x509.UniformResourceIdentifier) == [IDENTITY]
    assert names(certificate).get_values_for_type(x509.DNSName) == []
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


async def test_a_node_certificate_cannot_serve(authority):
    certificate = leaf(await authority.issue(make_csr(new_private_key()), spiffe_id=IDENTITY, ttl=DAY))
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


async def test_it_ends_after_its_life_and_the_chain_verifies(authority):
    issued = await authority.issue(make_csr(new_private_key()), spiffe_id=IDENTITY, ttl=DAY)
    certificate = leaf(issued)
    assert issued.expires_at == certificate.not_valid_after_utc == FakeClock().now() + DAY
    assert format(certificate.serial_number, "x") == issued.serial
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_pem))


async def test_no_certificate_lives_longer_than_398_days(authority):
    issued = await authority.issue(make_csr(new_private_key()), spiffe_id=IDENTITY, ttl=timedelta(days=4000))
    assert issued.expires_at == FakeClock().now() + timedelta(days=398)


def test_a_server_certificate_has_its_names_and_both_usages(authority):
    issued = authority.sign_leaf(
        new_private_key().public_key(), spiffe_id=IDENTITY, ttl=DAY, server_names=("localhost", "127.0.0.1")
    )
    certificate = leaf(issued)
    assert names(certificate).get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(one) for one in names(certificate).get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}


def altered(csr: bytes) -> bytes:
    return csr[:-1] + bytes([csr[-1] ^ 1])


def csr_of(key) -> bytes:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder(subject_name=x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"not der",
        lambda: altered(make_csr(new_private_key())),
        lambda: make_csr(new_private_key())[:-10],
        lambda: csr_of(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        lambda: csr_of(ec.generate_private_key(ec.SECP256K1())),
        lambda: csr_of(ed25519.Ed25519PrivateKey.generate()),
    ],
    ids=["empty", "garbage", "not self-signed", "truncated", "rsa 1024", "strange curve", "ed25519"],
)
async def test_a_bad_request_is_refused(authority, make):
    with pytest.raises(InvalidInputError):
        await authority.issue(make(), spiffe_id=IDENTITY, ttl=DAY)


def test_it_is_the_same_authority_after_a_restart(authority):
    again = BuiltinCertificateAuthority.from_pem(
        key_pem=authority.key_pem, certificate_pem=authority.certificate_pem, clock=FakeClock()
    )
    assert again.certificate_pem == authority.certificate_pem


def test_a_key_of_another_authority_is_refused(authority):
    other = BuiltinCertificateAuthority.create(installation="local", clock=FakeClock())
    with pytest.raises(KeyFormatError):
        BuiltinCertificateAuthority.from_pem(
            key_pem=other.key_pem, certificate_pem=authority.certificate_pem, clock=FakeClock()
        )


def test_a_chain_is_written_leaf_first(authority):
    issued = authority.sign_leaf(new_private_key().public_key(), spiffe_id=IDENTITY, ttl=DAY)
    first, last = x509.load_pem_x509_certificates(chain_pem(issued.chain_der))
    assert (first, last.public_bytes(serialization.Encoding.PEM)) == (leaf(issued), authority.certificate_pem)
