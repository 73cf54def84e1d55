"""What Postgres keeps of a password (RFC 5803, SCRAM-SHA-256): the password itself reaches no server log."""

import base64
import hashlib
import hmac
from typing import Final

from shared.errors import InvalidInputError

ITERATIONS: Final = 4096
"""Postgres' own default; the passwords here are long and random."""
SALT_BYTES: Final = 16
MAX_PASSWORD_CHARS: Final = 256


def verifier(password: str, salt: bytes) -> str:
    """Return the verifier that `ALTER ROLE … PASSWORD` takes instead of a password.

    Raises:
        InvalidInputError: It is empty, too long or not printable ASCII, which alone needs no normalising.
    """
    if not 0 < len(password) <= MAX_PASSWORD_CHARS or not (password.isascii() and password.isprintable()):
        raise InvalidInputError(
            f"the password of the service's role has 1 to {MAX_PASSWORD_CHARS} printable ASCII characters"
        )
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${ITERATIONS}:{_text(salt)}${_text(stored)}:{_text(server)}"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
