"""When certificates are renewed, and what a renewal keeps."""

from datetime import timedelta

import pytest
from cryptography import x509

from control_plane.installation.authorities import InstallationAuthority
from control_plane.installation.domain import SERVER_CERTIFICATE_LIFE, InitRequest
from control_plane.installation.files import ensure_authority, ensure_server_certificate
from control_plane.upkeep import CertificateRenewal
from shared.errors import InvalidInputError
from shared.ids import InstallationId
from shared.paths import InstallationPaths
from tests.fakes.clock import FakeClock

LOCAL = InstallationId("local")
NAMES = ("localhost",)
SECOND = timedelta(seconds=1)


class Desk:
    def __init__(self, folder):
        self.clock = FakeClock()
        self.paths = InstallationPaths(data_dir=folder)
        self.authority = ensure_authority(self.paths, LOCAL, self.clock)
        ensure_server_certificate(self.paths, LOCAL, self.authority, server_names=NAMES, clock=self.clock)
        self.renewal = CertificateRenewal(
            paths=self.paths,
            installation=LOCAL,
            authority=InstallationAuthority(self.paths, self.clock),
            server_names=NAMES,
            clock=self.clock,
        )

    def leaf(self):
        return x509.load_pem_x509_certificates(self.paths.server_certificate.read_bytes())[0]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.mark.parametrize(
    ("offset", "renewed"), [(-SECOND, False), (timedelta(0), False), (SECOND, True)], ids=["t-1", "t", "t+1"]
)
def test_a_certificate_is_renewed_when_less_than_a_third_of_its_life_is_left(desk, offset, renewed):
    desk.clock.advance(SERVER_CERTIFICATE_LIFE * 2 / 3 + offset)
    assert desk.renewal.renew_if_due() is renewed


def test_a_renewal_keeps_the_key_and_moves_the_end(desk):
    before, key = desk.leaf(), desk.paths.server_key.read_bytes()
    desk.clock.advance(SERVER_CERTIFICATE_LIFE)
    desk.renewal.renew_if_due()
    assert desk.paths.server_key.read_bytes() == key
    assert desk.leaf().public_key() == before.public_key()
    assert desk.leaf().not_valid_after_utc == desk.clock.now() + SERVER_CERTIFICATE_LIFE


@pytest.mark.parametrize("content", [b"", b"not a certificate"])
def test_a_damaged_certificate_is_replaced(desk, content):
    desk.paths.server_certificate.write_bytes(content)
    assert desk.renewal.renew_if_due()
    assert desk.leaf()


def test_another_name_of_the_server_is_another_certificate(desk):
    ensure_server_certificate(
        desk.paths, LOCAL, desk.authority, server_names=("control.example.test", "10.0.0.1"), clock=desk.clock
    )
    names = desk.leaf().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["control.example.test"]


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "a" * 64, "-a", "spiffe://x"])
def test_a_name_that_is_no_trust_domain_is_refused(tmp_path, name):
    with pytest.raises(InvalidInputError):
        InitRequest(data_dir=tmp_path, owner_database_url="", installation=InstallationId(name))


def test_no_secret_is_printed(tmp_path):
    request = InitRequest(
        data_dir=tmp_path, owner_database_url="postgresql://u:hunter2@h/d", service_password="hunter2"
    )
    assert "hunter2" not in repr(request)
