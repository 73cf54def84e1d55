"""The seal covers everything that makes an artifact what it is."""

from dataclasses import replace

import pytest

from data_plane.artifacts.seal import PREFIX_BYTES, ArtifactKey, check_seal, encode_seal, header_length, seal
from shared.digests import sha256_digest
from shared.errors import ArtifactInvalidError
from shared.manifest import Profile
from tests.unit.data_plane.builders import ENGINE

MAC_KEY = b"k" * 32
KEY = ArtifactKey(module_digest=sha256_digest(b"module"), engine=ENGINE)
SEAL = seal(KEY, artifact_digest=sha256_digest(b"code"), artifact_bytes=4, mac_key=MAC_KEY)
VOUCHED = seal(
    KEY, artifact_digest=sha256_digest(b"code"), artifact_bytes=4, vouched_by="one", mac_key=MAC_KEY
)


def header(made=SEAL) -> bytes:
    encoded = encode_seal(made)
    assert header_length(encoded[:PREFIX_BYTES]) == len(encoded) - PREFIX_BYTES
    return encoded[PREFIX_BYTES:]


@pytest.mark.parametrize("made", [SEAL, VOUCHED])
def test_own_seal_is_accepted(made):
    assert check_seal(header(made), key=KEY, mac_key=MAC_KEY) == made


@pytest.mark.parametrize(
    "forged",
    [
        replace(SEAL, artifact_digest=sha256_digest(b"evil")),
        replace(SEAL, artifact_bytes=5),
        replace(SEAL, mac=bytes(32)),
        replace(SEAL, key=replace(KEY, module_digest=sha256_digest(b"other"))),
        *(
            replace(SEAL, key=replace(KEY, engine=replace(ENGINE, **{name: "x"})))
            for name in ("name", "version", "config_digest", "cpu_features")
        ),
        replace(SEAL, key=replace(KEY, engine=replace(ENGINE, profile=Profile.PORTABLE))),
        replace(
            SEAL,
            key=replace(
                KEY, engine=replace(ENGINE, name=ENGINE.name + ENGINE.version[0], version=ENGINE.version[1:])
            ),
        ),
        replace(SEAL, vouched_by="one"),
        replace(VOUCHED, vouched_by=""),
        replace(VOUCHED, vouched_by="two"),
    ],
)
def test_changed_seal_is_refused(forged):
    with pytest.raises(ArtifactInvalidError):
        check_seal(header(forged), key=forged.key, mac_key=MAC_KEY)


@pytest.mark.parametrize(
    "key",
    [
        replace(KEY, module_digest=sha256_digest(b"other")),
        replace(KEY, engine=replace(ENGINE, version="7.4.3")),
        replace(KEY, engine=replace(ENGINE, cpu_features="sse2")),
        replace(KEY, engine=replace(ENGINE, profile=Profile.DETERMINISTIC)),
    ],
)
def test_right_seal_of_another_artifact_is_refused(key):
    with pytest.raises(ArtifactInvalidError):
        check_seal(header(), key=key, mac_key=MAC_KEY)


def test_seal_of_another_node_is_refused():
    with pytest.raises(ArtifactInvalidError):
        check_seal(header(), key=KEY, mac_key=b"o" * 32)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 8000, header()[:-1]])
def test_bytes_that_are_no_seal_are_refused(data):
    with pytest.raises(ArtifactInvalidError):
        check_seal(data, key=KEY, mac_key=MAC_KEY)


@pytest.mark.parametrize("prefix", [b"", b"x" * PREFIX_BYTES, b"AFARTF01\xff\xff\xff\xff"])
def test_prefix_that_announces_too_much_is_refused(prefix):
    with pytest.raises(ArtifactInvalidError):
        header_length(prefix)
