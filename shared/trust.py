"""What a node pins before it talks to anybody: the offline root key, the installation, its authority.

Owns the file `trust.json`. Nothing in it ever comes from the control plane over the network.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared.canonical import parse_strict
from shared.errors import MalformedError, NotFoundError
from shared.fields import Fields
from shared.ids import InstallationId, KeyId
from shared.signatures import PublicKey

FORMAT: Final = "agentfactory.trust.v1"
MAX_TRUST_BYTES: Final = 64 * 1024
MAX_PEM_CHARS: Final = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRoots:
    """The pinned roots of one installation."""

    installation: InstallationId
    root_key: PublicKey
    """Signs keysets."""
    ca_certificate_pem: bytes
    """Verifies the control plane's server certificate."""

    @property
    def root_keys(self) -> Mapping[KeyId, PublicKey]:
        """As `verify_keyset` takes them."""
        return {self.root_key.key_id: self.root_key}


def encode_trust(roots: TrustRoots) -> bytes:
    """Return the file's content."""
    document = {
        "type": FORMAT,
        "installation": roots.installation,
        "root_key_pem": roots.root_key.to_pem().decode("ascii"),
        "ca_certificate_pem": roots.ca_certificate_pem.decode("ascii"),
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def read_trust(path: Path) -> TrustRoots:
    """Return the roots in a file.

    Raises:
        NotFoundError: There is no such file.
        MalformedError: It is not a file of this format.
        KeyFormatError: The root key in it is refused.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TRUST_BYTES + 1)
    except OSError as error:
        raise NotFoundError(
            f"cannot read the trust roots {path}: {error.strerror}",
            hint="copy trust.json of the installation into the node's data directory",
        ) from error
    fields = Fields(parse_strict(data, max_bytes=MAX_TRUST_BYTES), "trust roots")
    if (found := fields.text("type")) != FORMAT:
        raise MalformedError(f"{path} is of format {found[:64]!r}, this build reads {FORMAT!r}")
    roots = TrustRoots(
        installation=InstallationId(fields.text("installation", max_chars=64)),
        root_key=PublicKey.from_pem(fields.text("root_key_pem", max_chars=MAX_PEM_CHARS).encode()),
        ca_certificate_pem=fields.text("ca_certificate_pem", max_chars=MAX_PEM_CHARS).encode(),
    )
    fields.end()
    return roots
