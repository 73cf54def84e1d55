"""The two keys of backups: one makes archives, the other opens them. Prints no key material.

Whoever makes backups can read none: archives are encrypted for a public key (HPKE, RFC 9180). Whoever gets at
the store can neither read nor forge one: headers are signed. Each file holds one half of both pairs.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from shared.errors import KeyFormatError, MalformedError, SignatureInvalidError
from shared.key_files import read_secret_file, write_secret_file
from shared.signatures import Algorithm, PrivateKey, PublicKey

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_INFO: Final = b"agentfactory backup v1"
_MAX_BYTES: Final = 16 * 1024
_BLOCK: Final = re.compile(
    rb"-----BEGIN (?P<kind>PRIVATE|PUBLIC) KEY-----\n[A-Za-z0-9+/=\n]+-----END (?P=kind) KEY-----\n"
)
KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateKey:
    """What makes backups: signs them, and encrypts them for whoever restores."""

    signer: PrivateKey = field(repr=False)
    recipient: X25519PublicKey = field(repr=False)

    @property
    def recipient_digest(self) -> str:
        """How headers name the recipient."""
        return _digest(self.recipient)

    def wrap(self, key: bytes) -> str:
        """Return an archive's key, encrypted for the recipient."""
        return base64.b64encode(_SUITE.encrypt(key, self.recipient, _INFO)).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreKey:
    """What opens backups, and knows who may have made them."""

    opener: X25519PrivateKey = field(repr=False)
    maker: PublicKey

    @property
    def recipient_digest(self) -> str:
        """How headers name this recipient."""
        return _digest(self.opener.public_key())

    def unwrap(self, wrapped: str) -> bytes:
        """Return an archive's key.

        Raises:
            SignatureInvalidError: It was encrypted for another recipient, or altered.
            MalformedError: It is no such text.
        """
        try:
            key = _SUITE.decrypt(base64.b64decode(wrapped, validate=True), self.opener, _INFO)
        except binascii.Error as error:
            raise MalformedError("the key of the archive is not base64") from error
        except (InvalidTag, ValueError) as error:
            raise SignatureInvalidError("the key of the archive does not open under this key") from error
        if len(key) != KEY_BYTES:
            raise MalformedError(f"the key of the archive has {len(key)} bytes")
        return key


def make_keys() -> tuple[bytes, bytes]:
    """Return a new pair of files: what makes backups, and what opens them."""
    signer, opener = PrivateKey.generate_ed25519(), X25519PrivateKey.generate()
    private = opener.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = opener.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return signer.to_pem() + public, private + signer.public.to_pem()


def write_keys(create: Path, restore: Path) -> None:
    """Make a pair and store it, mode 0600.

    Raises:
        AlreadyExistsError: A path is taken; a key is never overwritten.
    """
    made, opens = make_keys()
    # The one that opens first: with the other alone, archives would be made that nobody opens.
    write_secret_file(restore, opens)
    write_secret_file(create, made)


def read_create_key(path: Path) -> CreateKey:
    """Return the key that makes backups.

    Raises:
        NotFoundError, KeyFileModeError: As `read_secret_file`.
        KeyFormatError: It is another kind of file.
    """
    private, public = _blocks(path)
    try:
        recipient = serialization.load_pem_public_key(public)
        signer = PrivateKey.from_pem(private)
    except (ValueError, TypeError, KeyFormatError) as error:
        raise _wrong(path, "makes", "backup-create.key") from error
    if not isinstance(recipient, X25519PublicKey) or signer.public.algorithm is not Algorithm.ED25519:
        raise _wrong(path, "makes", "backup-create.key")
    return CreateKey(signer=signer, recipient=recipient)


def read_restore_key(path: Path) -> RestoreKey:
    """Return the key that opens backups. Raises as `read_create_key`."""
    private, public = _blocks(path)
    try:
        opener = serialization.load_pem_private_key(private, password=None)
        maker = PublicKey.from_pem(public)
    except (ValueError, TypeError, KeyFormatError) as error:
        raise _wrong(path, "opens", "backup-restore.key") from error
    if not isinstance(opener, X25519PrivateKey):
        raise _wrong(path, "opens", "backup-restore.key")
    return RestoreKey(opener=opener, maker=maker)


def _blocks(path: Path) -> tuple[bytes, bytes]:
    data = read_secret_file(path, max_bytes=_MAX_BYTES)
    found = {match["kind"]: match[0] for match in _BLOCK.finditer(data)}
    if set(found) != {b"PRIVATE", b"PUBLIC"} or sum(map(len, found.values())) != len(data):
        raise KeyFormatError(
            f"{path} is no key of backups: one private and one public key",
            hint="make both with: agentfactory backup keys",
        )
    return found[b"PRIVATE"], found[b"PUBLIC"]


def _wrong(path: Path, does: str, name: str) -> KeyFormatError:
    return KeyFormatError(f"{path} is not the key that {does} backups", hint=f"give {name}")


def _digest(key: X25519PublicKey) -> str:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{hashlib.sha256(der).hexdigest()}"
