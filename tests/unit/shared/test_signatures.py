import itertools

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from shared import signatures
from shared.errors import KeyFormatError, SignatureInvalidError
from shared.signatures import PrivateKey, PublicKey
from tests.fixtures.keys import ed25519_key, rsa_key, signer

KEYS = [rsa_key(), ed25519_key()]
BY_ALGORITHM = pytest.mark.parametrize("key", KEYS, ids=lambda key: key.public.algorithm)


def spki(public) -> bytes:
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@BY_ALGORITHM
def test_what_a_key_signs_its_public_half_verifies(key):
    key.public.verify(key.sign(b"data"), b"data")


@BY_ALGORITHM
@pytest.mark.parametrize(
    "alter",
    [
        lambda sig: sig[:-1],
        lambda sig: sig + b"\x00",
        lambda sig: b"\x00" + sig,
        lambda sig: b"",
        lambda sig: bytes([sig[0] ^ 1]) + sig[1:],
        lambda sig: sig * 200,
    ],
)
def test_altered_signature_is_refused(key, alter):
    with pytest.raises(SignatureInvalidError):
        key.public.verify(alter(key.sign(b"data")), b"data")


@BY_ALGORITHM
def test_signature_of_other_data_or_by_another_key_is_refused(key):
    with pytest.raises(SignatureInvalidError):
        key.public.verify(key.sign(b"data"), b"datb")
    other = rsa_key("other") if key is KEYS[0] else ed25519_key("other")
    with pytest.raises(SignatureInvalidError):
        key.public.verify(other.sign(b"data"), b"data")


@BY_ALGORITHM
def test_keys_survive_pem_and_keep_their_id(key):
    assert PrivateKey.from_pem(key.to_pem()).key_id == key.key_id
    assert PublicKey.from_pem(key.public.to_pem()) == key.public
    assert PublicKey.from_spki_der(key.public.spki_der) == key.public


@BY_ALGORITHM
def test_private_key_never_shows_in_its_representation(key):
    shown = f"{key!r} {key} {signer(key)!r}"
    assert key.key_id in shown
    assert "PRIVATE" not in shown
    assert "object at" not in shown


def test_key_id_is_the_digest_of_the_public_key_info():
    known = PrivateKey.ed25519_from_seed(bytes(32)).public
    assert known.spki_der.hex().endswith("3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29")
    assert known.key_id == signatures.key_id_of(known.spki_der)


async def test_file_signer_names_its_key():
    made = await signer(rsa_key()).sign(b"data")
    assert (made.key_id, made.key_version) == (rsa_key().key_id, 1)
    rsa_key().public.verify(made.value, b"data")


def test_rsa_below_2048_bits_is_refused():
    with pytest.raises(KeyFormatError, match="2047 bits"):
        PublicKey.from_spki_der(spki(rsa.RSAPublicNumbers(65537, (1 << 2046) + 1).public_key()))
    with pytest.raises(KeyFormatError, match="1024 bits"):
        PrivateKey.generate_rsa(bits=1024)


def test_rsa_above_8192_bits_is_refused():
    with pytest.raises(KeyFormatError, match="8193 bits"):
        PublicKey.from_spki_der(spki(rsa.RSAPublicNumbers(65537, (1 << 8192) + 1).public_key()))


@pytest.mark.parametrize("exponent", [3, 17, 65539])
def test_rsa_exponent_other_than_65537_is_refused(exponent):
    n = rsa_key().public._key.public_numbers().n
    with pytest.raises(KeyFormatError, match=f"exponent {exponent}"):
        PublicKey.from_spki_der(spki(rsa.RSAPublicNumbers(exponent, n).public_key()))


def test_rsa_modulus_with_a_small_factor_is_refused():
    n = (1 << 2047) + 1  # divisible by 3
    with pytest.raises(KeyFormatError, match="small prime factor"):
        PublicKey.from_spki_der(spki(rsa.RSAPublicNumbers(65537, n).public_key()))


def test_key_of_another_kind_is_refused():
    with pytest.raises(KeyFormatError, match="EC"):
        PublicKey.from_spki_der(spki(ec.generate_private_key(ec.SECP256R1()).public_key()))


def small_order_encodings() -> set[bytes]:  # noqa: C901 - the curve, in one piece
    """Every encoding of a curve point P with 8·P neutral, computed from the curve's equation (RFC 8032 5.1)."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    root_of_minus_one = pow(2, (p - 1) // 4, p)

    def add(a, b):
        (x1, y1), (x2, y2) = a, b
        product = d * x1 * x2 * y1 * y2
        return (
            (x1 * y2 + x2 * y1) * pow(1 + product, -1, p) % p,
            (y1 * y2 + x1 * x2) * pow(1 - product, -1, p) % p,
        )

    def decode(y):
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        x = pow(square, (p + 3) // 8, p)
        if x * x % p != square:
            x = x * root_of_minus_one % p
        return (x, y % p) if x * x % p == square else None

    order = 2**252 + 27742317777372353535851937790883648493
    found = set()
    for y in itertools.count(2):
        point = decode(y)
        if point is None:
            continue
        # order·P lies in the subgroup of order 8; its multiples are all of it when it generates it.
        total, base, bits = (0, 1), point, order
        while bits:
            if bits & 1:
                total = add(total, base)
            base, bits = add(base, base), bits >> 1
        multiples = list(itertools.accumulate([total] * 8, add))
        if len(set(multiples)) == 8:
            found = {q[1] for q in multiples}
            break
    encodings = set()
    for y in found:
        for alias in (y, y + p):
            if alias < 2**255:
                encodings |= {alias.to_bytes(32, "little"), (alias | 1 << 255).to_bytes(32, "little")}
    return encodings


def test_ed25519_points_of_small_order_are_refused_as_keys():
    header = bytes.fromhex("302a300506032b6570032100")
    encodings = small_order_encodings()
    assert len(encodings) == 14
    for point in encodings:
        with pytest.raises(KeyFormatError):
            PublicKey.from_spki_der(header + point)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"not a key",
        rsa_key().public.to_pem() * 2,
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        rsa_key().to_pem(),
        b" " * 20_000,
    ],
)
def test_what_is_no_public_key_pem(pem):
    with pytest.raises(KeyFormatError):
        PublicKey.from_pem(pem)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        rsa_key().to_pem() * 2,
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b" " * 20_000,
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    ],
)
def test_what_is_no_private_key_pem(pem):
    with pytest.raises(KeyFormatError):
        PrivateKey.from_pem(pem)


@pytest.mark.parametrize("der", [b"", b"\x30\x00", bytes(20_000)])
def test_what_is_no_public_key_der(der):
    with pytest.raises(KeyFormatError):
        PublicKey.from_spki_der(der)


def test_keys_are_made_fresh_and_seeds_have_32_bytes():
    assert PrivateKey.generate_ed25519().key_id != PrivateKey.generate_ed25519().key_id
    with pytest.raises(KeyFormatError, match="not 31"):
        PrivateKey.ed25519_from_seed(bytes(31))


def test_pkcs1_and_encrypted_private_keys_are_refused():
    inner = rsa_key()._key
    traditional = inner.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    encrypted = inner.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    for pem in (traditional, encrypted, rsa_key().public.to_pem()):
        with pytest.raises(KeyFormatError, match="PKCS#8"):
            PrivateKey.from_pem(pem)


def test_second_encoding_of_a_key_is_refused_because_it_would_have_a_second_id():
    der = rsa_key().public.spki_der
    with_null = bytes.fromhex("06092a864886f70d0101010500")
    inner = bytes.fromhex("300b06092a864886f70d010101") + der[der.index(with_null) + len(with_null) :]
    with pytest.raises(KeyFormatError, match="not in DER"):
        PublicKey.from_spki_der(b"\x30\x82" + len(inner).to_bytes(2, "big") + inner)


def test_trailing_bytes_behind_der_are_refused():
    with pytest.raises(KeyFormatError):
        PublicKey.from_spki_der(rsa_key().public.spki_der + b"\x00")
