"""Verifier keys as golang.org/x/mod/sumdb/note and C2SP signed-note write them."""

import pytest

from shared.checkpoints import COSIGNATURE, ED25519, VerifierKey, parse_verifier_key
from shared.errors import AgentFactoryError
from shared.signatures import PrivateKey

PUBLIC = PrivateKey.ed25519_from_seed(bytes(32)).public
SUMDB = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
"""Of Go's checksum database, as cmd/go has it."""


@pytest.mark.parametrize("kind", [ED25519, COSIGNATURE])
def test_there_and_back(kind):
    key = VerifierKey(name="witness.example/w1", kind=kind, public=PUBLIC)
    assert parse_verifier_key(key.text) == key


def test_a_key_that_others_published():
    assert parse_verifier_key(SUMDB).text == SUMDB


@pytest.mark.parametrize(
    "text",
    [
        "",
        SUMDB + "\n",
        SUMDB.replace("033de0ae", "033de0af"),
        SUMDB.replace("sum.", "sun."),
        SUMDB.replace("+033de0ae", ""),
        SUMDB.replace("+Ac4z", "+As4z"),
        SUMDB.replace("+Ac", "+Cc"),
        SUMDB[:-4],
        " " + SUMDB,
        "x" * 300 + SUMDB,
    ],
    ids=range(10),
)
def test_what_is_none_is_refused(text):
    with pytest.raises(AgentFactoryError):
        parse_verifier_key(text)
