"""Public and private keys, and signing with them: RSA PKCS#1 v1.5 with SHA-256, and Ed25519. Reads no file.

Two algorithms and no negotiation: the key decides. Private key material is never printed.
"""

import hashlib
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from shared.errors import KeyFormatError, SignatureInvalidError
from shared.ids import KeyId

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
"""Verifying with larger moduli costs milliseconds each: a way to stall a verifier."""

RSA_EXPONENTS: Final = frozenset({65537})
"""The exponent of every key that this system makes, and (NIST SP 800-56B: e > 2^16) the one it trusts."""

MAX_PEM_BYTES: Final = 16 * 1024
MAX_SIGNATURE_BYTES: Final = MAX_RSA_BITS // 8
ED25519_SEED_BYTES: Final = 32

_SMALL_PRIMES: Final = math.prod(n for n in range(3, 752) if all(n % d for d in range(2, n)))

# The encodings of the points whose order divides 8 (sign bit cleared): under such a "key" a forged signature
# can verify for any message. RFC 8032 section 5.1.7 leaves the check to the application.
_SMALL_ORDER_POINTS: Final = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


class Algorithm(StrEnum):
    """How a key signs."""

    RSA_PKCS1_SHA256 = "rsa-pkcs1v15-sha256"
    ED25519 = "ed25519"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A key that can check signatures. Equal when the key ids are."""

    key_id: KeyId
    algorithm: Algorithm = field(compare=False)
    spki_der: bytes = field(compare=False, repr=False)
    _key: rsa.RSAPublicKey | ed25519.Ed25519PublicKey = field(compare=False, repr=False)

    @classmethod
    def from_pem(cls, pem: bytes, *, rsa_exponents: frozenset[int] = RSA_EXPONENTS) -> "PublicKey":
        """Return the key in one ``BEGIN PUBLIC KEY`` block.

        Raises:
            KeyFormatError: As `from_spki_der`; or it is not exactly one such block of at most 16 KiB.
        """
        text = pem.strip()
        if len(pem) > MAX_PEM_BYTES:
            raise KeyFormatError(f"public key file has {len(pem)} bytes, the bound is {MAX_PEM_BYTES}")
        if not text.startswith(b"-----BEGIN PUBLIC KEY-----") or text.count(b"-----BEGIN") != 1:
            raise KeyFormatError("public key is not exactly one PEM block 'PUBLIC KEY'")
        try:
            key = serialization.load_pem_public_key(text)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KeyFormatError(f"public key does not decode: {error}") from error
        return _public_key(key, rsa_exponents)

    @classmethod
    def from_spki_der(cls, der: bytes, *, rsa_exponents: frozenset[int] = RSA_EXPONENTS) -> "PublicKey":
        """Return the key in a SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).

        Raises:
            KeyFormatError: It does not decode, is not DER; is neither RSA nor Ed25519; is RSA outside 2048 to
                8192 bits, with an exponent outside `rsa_exponents`, or a modulus that is even or has a prime
                factor below 752 (NIST SP 800-89 section 5.3.3); is an Ed25519 point of small order.
        """
        if len(der) > MAX_PEM_BYTES:
            raise KeyFormatError(f"public key has {len(der)} bytes, the bound is {MAX_PEM_BYTES}")
        try:
            key = serialization.load_der_public_key(der)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KeyFormatError(f"public key does not decode: {error}") from error
        public = _public_key(key, rsa_exponents)
        if public.spki_der != der:
            raise KeyFormatError("public key is not in DER, or carries trailing bytes")
        return public

    def to_pem(self) -> bytes:
        """Return the key as one ``BEGIN PUBLIC KEY`` block."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return if, and only if, `signature` is this key's over exactly `data`.

        RSA as RFC 8017 section 8.2.2 (encode and compare: one signature per message, no other padding or
        hash, no missing NULL); Ed25519 as RFC 8032 section 5.1.7.

        Raises:
            SignatureInvalidError: It is not.
        """
        if len(signature) > MAX_SIGNATURE_BYTES:
            raise SignatureInvalidError(f"signature has {len(signature)} bytes, more than any key makes")
        try:
            if isinstance(self._key, rsa.RSAPublicKey):
                # OpenSSL refuses a shorter or longer string too; said here so that no backend decides it.
                if len(signature) * 8 != (self._key.key_size + 7) // 8 * 8:
                    raise SignatureInvalidError(f"signature length does not fit key {self.key_id}")
                self._key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            else:
                self._key.verify(signature, data)
        except InvalidSignature as error:
            raise SignatureInvalidError(f"signature by key {self.key_id} does not match") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateKey:
    """A key that can sign. Its representation shows the key id only."""

    public: PublicKey
    _key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey = field(compare=False, repr=False)

    @classmethod
    def generate_rsa(cls, *, bits: int = MIN_RSA_BITS) -> "PrivateKey":
        """Make an RSA key. Randomness is the crypto library's own: key generation is not to be replayed.

        Raises:
            KeyFormatError: `bits` is outside 2048 to 8192.
        """
        if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
            raise KeyFormatError(f"an rsa key of {bits} bits is refused: {MIN_RSA_BITS} to {MAX_RSA_BITS}")
        return _private_key(rsa.generate_private_key(public_exponent=65537, key_size=bits))

    @classmethod
    def generate_ed25519(cls) -> "PrivateKey":
        """Make an Ed25519 key, with randomness of the crypto library."""
        return _private_key(ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def ed25519_from_seed(cls, seed: bytes) -> "PrivateKey":
        """Return the Ed25519 key of a 32-byte seed (RFC 8032 section 5.1.5).

        Raises:
            KeyFormatError: The seed has another length.
        """
        if len(seed) != ED25519_SEED_BYTES:
            raise KeyFormatError(f"an ed25519 seed has {ED25519_SEED_BYTES} bytes, not {len(seed)}")
        return _private_key(ed25519.Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_pem(cls, pem: bytes) -> "PrivateKey":
        """Return the key in one unencrypted PKCS#8 block.

        Raises:
            KeyFormatError: It is not exactly one such block of at most 16 KiB, is encrypted, or its public
                half is refused as `PublicKey.from_spki_der` says.
        """
        text = pem.strip()
        if len(pem) > MAX_PEM_BYTES:
            raise KeyFormatError(f"private key file has {len(pem)} bytes, the bound is {MAX_PEM_BYTES}")
        if not text.startswith(b"-----BEGIN PRIVATE KEY-----") or text.count(b"-----BEGIN") != 1:
            raise KeyFormatError(
                "private key is not exactly one unencrypted PEM block 'PRIVATE KEY' (PKCS#8)"
            )
        try:
            key = serialization.load_pem_private_key(text, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            # No `from error` text in the message: a parser's words may quote the input.
            raise KeyFormatError("private key does not decode") from error
        return _private_key(key)

    @property
    def key_id(self) -> KeyId:
        """Id of the public half."""
        return self.public.key_id

    def to_pem(self) -> bytes:
        """Return the key as unencrypted PKCS#8. The result is a secret: write it with `key_files` only."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def sign(self, data: bytes) -> bytes:
        """Sign exactly `data`. Deterministic. Takes about 0.3 ms (RSA-2048) or 0.03 ms (Ed25519) of CPU."""
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return self._key.sign(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One signature and which key made it."""

    key_id: KeyId
    key_version: int
    """The custodian's number of the key (Vault's ``vault:vN:``); 1 for a key that is a file."""
    value: bytes


class Signer(Protocol):
    """Holds a signing key somewhere: in a file now, in a key service later."""

    async def sign(self, data: bytes) -> Signature:
        """Sign exactly `data` with the current key.

        Raises:
            KeyUnavailableError: The key's custodian does not answer in time.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSigner:
    """Signs with a key that this process holds, as read from a file by `key_files`."""

    key: PrivateKey

    async def sign(self, data: bytes) -> Signature:
        """Sign at once, on the loop: a thread would cost more than the 0.3 ms."""
        return Signature(key_id=self.key.key_id, key_version=1, value=self.key.sign(data))


def key_id_of(spki_der: bytes) -> KeyId:
    """Return the id of a public key: the SHA-256 of its SubjectPublicKeyInfo."""
    return KeyId("sha256:" + hashlib.sha256(spki_der).hexdigest())


def _public_key(key: object, rsa_exponents: frozenset[int]) -> PublicKey:
    if isinstance(key, rsa.RSAPublicKey):
        _check_rsa(key, rsa_exponents)
        algorithm = Algorithm.RSA_PKCS1_SHA256
    elif isinstance(key, ed25519.Ed25519PublicKey):
        _check_ed25519(key)
        algorithm = Algorithm.ED25519
    else:
        raise KeyFormatError(f"a key of kind {type(key).__name__} is refused")
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(key_id=key_id_of(der), algorithm=algorithm, spki_der=der, _key=key)


def _private_key(key: object) -> PrivateKey:
    if not isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise KeyFormatError(f"a key of kind {type(key).__name__} is refused")
    return PrivateKey(public=_public_key(key.public_key(), RSA_EXPONENTS), _key=key)


def _check_rsa(key: rsa.RSAPublicKey, exponents: frozenset[int]) -> None:
    numbers = key.public_numbers()
    bits = numbers.n.bit_length()
    if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
        raise KeyFormatError(f"an rsa key of {bits} bits is refused: {MIN_RSA_BITS} to {MAX_RSA_BITS}")
    if numbers.e not in exponents:
        raise KeyFormatError(f"an rsa key with exponent {numbers.e} is refused: 65537 is used here")
    if numbers.n % 2 == 0 or math.gcd(numbers.n, _SMALL_PRIMES) != 1:
        raise KeyFormatError("an rsa modulus with a small prime factor is refused")


def _check_ed25519(key: ed25519.Ed25519PublicKey) -> None:
    raw = key.public_bytes_raw()
    if raw[:-1] + bytes([raw[-1] & 0x7F]) in _SMALL_ORDER_POINTS:
        raise KeyFormatError("an ed25519 key of small order is refused")
