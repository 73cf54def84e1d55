"""The file that a node pins."""

import pytest

from shared.errors import MalformedError, NotFoundError, VerificationError
from shared.ids import InstallationId
from shared.trust import TrustRoots, encode_trust, read_trust
from tests.fixtures.keys import ed25519_key

ROOTS = TrustRoots(
    installation=InstallationId("local"), root_key=ed25519_key("root").public, ca_certificate_pem=b"PEM"
)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "trust.json"
    path.write_bytes(encode_trust(ROOTS))
    assert read_trust(path) == ROOTS


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(NotFoundError) as caught:
        read_trust(tmp_path / "trust.json")
    assert "trust.json" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"trust.v1", b"trust.v9"), (b'"installation"', b'"extra": "x", "installation"'), (b"{", b"[")],
)
def test_another_format_or_an_unknown_field_is_refused(tmp_path, old, new):
    path = tmp_path / "trust.json"
    path.write_bytes(encode_trust(ROOTS).replace(old, new, 1))
    with pytest.raises((MalformedError, VerificationError)):
        read_trust(path)
