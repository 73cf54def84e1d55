"""How long a certificate on disk counts yet: read anew each time, and never an error in a gauge."""

from datetime import timedelta

import pytest

from control_plane.keys.ca import AUTHORITY_LIFE, BuiltinCertificateAuthority
from shared.certificates import UNREADABLE, certificate_ends_at, seconds_left
from shared.errors import KeyFormatError, NotFoundError
from shared.ids import InstallationId
from tests.fakes.clock import FakeClock


def test_it_ends_when_the_first_certificate_of_the_file_does(tmp_path):
    clock, path = FakeClock(), tmp_path / "ca.crt"
    first = BuiltinCertificateAuthority.create(installation=InstallationId("local"), clock=clock)
    retiring = first.ending(clock.now() + timedelta(days=1))
    path.write_bytes(first.certificate_pem + retiring.certificate_pem)
    assert certificate_ends_at(path) == first.ends_at
    clock.advance(timedelta(days=1))
    assert seconds_left(path, clock) == (AUTHORITY_LIFE - timedelta(days=1)).total_seconds()
    path.write_bytes(retiring.certificate_pem)
    clock.advance(timedelta(hours=1))
    assert seconds_left(path, clock) < 0


def test_what_cannot_be_read_counts_as_ended(tmp_path):
    clock, path = FakeClock(), tmp_path / "server.crt"
    with pytest.raises(NotFoundError):
        certificate_ends_at(path)
    assert seconds_left(path, clock) == UNREADABLE
    path.write_bytes(b"-----BEGIN CERTIFICATE-----")
    with pytest.raises(KeyFormatError):
        certificate_ends_at(path)
    assert seconds_left(path, clock) == UNREADABLE < 0
