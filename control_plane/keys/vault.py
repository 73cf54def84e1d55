"""Custody in the transit engine of Vault or OpenBao: private keys never leave it. Implements `KeyCustody`.

One transit key for each purpose; its versions are our keys. A signature counts only after it was checked
here under the public key that was asked for: a custodian that mixes keys up signs nothing for us.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any, Final

import hvac

from control_plane.keys.domain import CUSTODY, CustodyKey, require_custody
from shared.errors import KeyFormatError, KeyUnavailableError, NotFoundError, SignatureInvalidError
from shared.keyset import KeyPurpose
from shared.signatures import Algorithm, PublicKey, Signature
from shared.vault import VaultClient

_TRANSIT_TYPES: Final = {Algorithm.RSA_PKCS1_SHA256: "rsa-2048", Algorithm.ED25519: "ed25519"}
_SIGNATURE: Final = re.compile(r"vault:v(\d{1,9}):([A-Za-z0-9+/]+={0,2})")
_ED25519_PREFIX: Final = bytes.fromhex("302a300506032b6570032100")
"""SubjectPublicKeyInfo of RFC 8410 up to the key: the engine gives the bare 32 bytes."""
_ED25519_BYTES: Final = 32
MAX_VERSIONS: Final = 256
"""Newest versions of one key that are looked at."""


class VaultCustody:
    """Keys ``<prefix>-<purpose>`` of one transit engine."""

    def __init__(self, vault: VaultClient, *, mount: str = "transit", prefix: str = "agentfactory") -> None:
        self._vault = vault
        self._mount = mount
        self._prefix = prefix

    async def keys(self, purpose: KeyPurpose) -> Sequence[CustodyKey]:
        """See `KeyCustody.keys`."""
        algorithm, name = require_custody(purpose), self._name(purpose)
        try:
            answer = await self._vault.call(
                lambda client: client.secrets.transit.read_key(name, mount_point=self._mount)
            )
        except NotFoundError:
            return ()
        return _custody_keys(answer, purpose, name, algorithm)

    async def create(self, purpose: KeyPurpose) -> CustodyKey:
        """See `KeyCustody.create`. The first key of a purpose is made, each later one is a rotation."""
        algorithm, name = require_custody(purpose), self._name(purpose)
        is_first = not await self.keys(purpose)

        def make(client: hvac.Client) -> None:
            transit = client.secrets.transit
            if is_first:
                kind = _TRANSIT_TYPES[algorithm]
                transit.create_key(name, key_type=kind, exportable=False, mount_point=self._mount)
            else:
                transit.rotate_key(name, mount_point=self._mount)

        await self._vault.call(make)
        made = await self.keys(purpose)
        if not made:
            raise KeyUnavailableError(f"the vault made key {name} and does not show it")
        return made[-1]

    async def sign(self, key: CustodyKey, data: bytes) -> Signature:
        """See `KeyCustody.sign`."""
        content = base64.b64encode(data).decode("ascii")

        def ask(client: hvac.Client) -> Any:
            return client.secrets.transit.sign_data(
                key.name,
                hash_input=content,
                key_version=key.version,
                hash_algorithm="sha2-256",
                signature_algorithm="pkcs1v15"
                if key.public.algorithm is Algorithm.RSA_PKCS1_SHA256
                else None,
                mount_point=self._mount,
            )

        try:
            answer = await self._vault.call(ask)
        except NotFoundError as error:
            raise KeyUnavailableError(f"the vault holds no key {key.name}") from error
        value = _signature_of(answer, key)
        try:
            key.public.verify(value, data)
        except SignatureInvalidError as error:
            raise KeyUnavailableError(
                f"the vault signed with another key than version {key.version} of {key.name}"
            ) from error
        return Signature(key_id=key.key_id, key_version=key.version, value=value)

    async def check(self) -> None:
        """See `KeyCustody.check`."""
        await self.keys(next(iter(CUSTODY)))

    def _name(self, purpose: KeyPurpose) -> str:
        return f"{self._prefix}-{purpose}"


def _custody_keys(
    answer: object, purpose: KeyPurpose, name: str, algorithm: Algorithm
) -> tuple[CustodyKey, ...]:
    try:
        data = answer["data"]  # type: ignore[index]
        versions = sorted((int(number), one["public_key"]) for number, one in data["keys"].items())
        lowest = max(int(data["min_available_version"]), int(data["min_decryption_version"]), 1)
        usable = max(lowest, int(data["min_encryption_version"]))
        found = tuple(
            CustodyKey(purpose=purpose, name=name, version=number, public=_public_key(text))
            for number, text in versions[-MAX_VERSIONS:]
            if number >= usable
        )
    except (KeyError, TypeError, ValueError, AttributeError, KeyFormatError) as error:
        raise KeyUnavailableError(f"the vault's key {name} cannot be read as one") from error
    if any(key.public.algorithm is not algorithm for key in found):
        raise KeyUnavailableError(f"the vault's key {name} is not of type {_TRANSIT_TYPES[algorithm]}")
    return found


def _public_key(text: str) -> PublicKey:
    if text.startswith("-----BEGIN"):
        return PublicKey.from_pem(text.encode("ascii"))
    raw = base64.b64decode(text, validate=True)
    if len(raw) != _ED25519_BYTES:
        raise KeyFormatError(f"a public key of {len(raw)} bytes is none of ours")
    return PublicKey.from_spki_der(_ED25519_PREFIX + raw)


def _signature_of(answer: object, key: CustodyKey) -> bytes:
    try:
        found = _SIGNATURE.fullmatch(answer["data"]["signature"])  # type: ignore[index]
    except (KeyError, TypeError) as error:
        raise KeyUnavailableError("the vault's answer holds no signature") from error
    if found is None or int(found[1]) != key.version:
        raise KeyUnavailableError(f"the vault's signature is not by version {key.version} of {key.name}")
    try:
        return base64.b64decode(found[2], validate=True)
    except binascii.Error as error:
        raise KeyUnavailableError("the vault's signature is not base64") from error
