"""A running node follows the authority in its trust file, and nothing else that the file may say."""

from dataclasses import replace

from data_plane.authority import FollowedAuthority
from shared.ids import InstallationId
from shared.trust import TrustRoots, encode_trust
from tests.fixtures.keys import ed25519_key

ROOTS = TrustRoots(
    installation=InstallationId("local"), root_key=ed25519_key("root").public, ca_certificate_pem=b"PEM"
)


def test_a_new_authority_is_followed_and_nothing_else(tmp_path):
    path = tmp_path / "trust.json"
    path.write_bytes(encode_trust(ROOTS))
    followed = FollowedAuthority(path, ROOTS)
    assert followed.read() == b"PEM"

    path.write_bytes(encode_trust(replace(ROOTS, ca_certificate_pem=b"NEW")))
    assert followed.read() == b"NEW"
    other = replace(ROOTS, installation=InstallationId("other"), ca_certificate_pem=b"THEIRS")
    for content in (encode_trust(other), b"{", b""):
        path.write_bytes(content)
        assert followed.read() == b"NEW"
    path.unlink()
    assert followed.read() == b"NEW"
