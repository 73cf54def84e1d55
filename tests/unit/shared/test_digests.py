import hashlib

import pytest

from shared import digests
from shared.errors import InvalidInputError

SALT = bytes(range(32))


def test_digest_of_nothing_is_the_known_one():
    expected = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digests.sha256_digest(b"") == expected
    assert digests.digest_from_raw(digests.digest_to_raw(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "A" * 64, "sha512:" + "a" * 64, "sha256:" + "a" * 63, "a" * 64]
)
def test_other_text_is_no_digest(text):
    with pytest.raises(InvalidInputError, match="not a digest"):
        digests.parse_digest(text)


def test_commitment_is_the_formula_of_the_design():
    body = b"hello"
    expected = hashlib.sha256(b"af-body-v1" + SALT + hashlib.sha256(body).digest()).hexdigest()
    assert digests.commit_body(body, SALT) == f"sha256:{expected}"
    assert digests.commit_body_hash(hashlib.sha256(body).digest(), SALT) == f"sha256:{expected}"


def test_commitment_cannot_be_found_without_the_salt():
    assert digests.commit_body(b"hello", SALT) != digests.commit_body(b"hello", bytes(32))


@pytest.mark.parametrize("salt", [b"", bytes(31), bytes(33)])
def test_commitment_refuses_a_salt_that_is_not_32_bytes(salt):
    with pytest.raises(InvalidInputError):
        digests.commit_body(b"hello", salt)


def test_digests_compare_and_raw_hashes_have_32_bytes():
    one, two = digests.sha256_digest(b"1"), digests.sha256_digest(b"2")
    assert digests.same_digest(one, one)
    assert not digests.same_digest(one, two)
    with pytest.raises(InvalidInputError, match="not 31"):
        digests.digest_from_raw(bytes(31))


def test_keyed_digest_of_rfc_4231_and_its_shortest_key():
    key, data = b"\xaa" * 131, b"Test Using Larger Than Block-Size Key - Hash Key First"
    expected = "sha256:60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
    assert digests.keyed_digest(key, data) == expected
    with pytest.raises(InvalidInputError):
        digests.keyed_digest(bytes(31), data)
