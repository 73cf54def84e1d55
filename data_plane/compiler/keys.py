"""The key that a compiling node signs with: made on the node, and never leaves it."""

from pathlib import Path

from data_plane.files import replace_file
from shared.key_files import read_private_key, write_private_key
from shared.signatures import PrivateKey, PublicKey


def ensure_compiler_key(path: Path) -> PublicKey:
    """Make the key unless it is there, write the public one beside it as `.pub`, and return that.

    Raises:
        KeyFileModeError, KeyFormatError: What is there is no private key that only its owner may read.
    """
    if not path.exists():
        write_private_key(path, PrivateKey.generate_ed25519())
    public = read_private_key(path).public
    replace_file(path.with_suffix(".pub"), public.to_pem())
    return public
