"""Checkpoints of a transparency log as signed notes (C2SP signed-note and tlog-checkpoint). No I/O, no clock.

A checkpoint is three lines, the log's origin, its size and its root, below them any number of signatures: the
log's own and those of witnesses (C2SP tlog-cosignature, with a time). Ed25519 only.
"""

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shared.errors import InvalidInputError, MalformedError, SignatureInvalidError, UnknownKeyError
from shared.merkle import HASH_BYTES, MAX_TREE_SIZE
from shared.signatures import Algorithm, PublicKey, Signer

MAX_NOTE_BYTES: Final = 64 * 1024
MAX_SIGNATURES: Final = 64
MAX_NAME_CHARS: Final = 255

ED25519: Final = 1
"""Signature kind: over the text of the note."""
COSIGNATURE: Final = 4
"""Signature kind: over a time and the text of a checkpoint."""

_NAME: Final = re.compile(rf"[!-*,-~]{{1,{MAX_NAME_CHARS}}}")
"""No space, no plus, nothing that cannot be printed."""
_SIGNATURE: Final = re.compile(r"\N{EM DASH} (?P<name>[!-*,-~]+) (?P<data>[A-Za-z0-9+/]+={0,2})")
_VERIFIER_KEY: Final = re.compile(
    rf"(?P<name>[!-*,-~]{{1,{MAX_NAME_CHARS}}})\+(?P<id>[0-9a-f]{{8}})\+(?P<data>[A-Za-z0-9+/]{{44}})"
)
_SPKI_PREFIX: Final = bytes.fromhex("302a300506032b6570032100")
"""Before the 32 bytes of an Ed25519 key (RFC 8410 section 4)."""
_KEY_BYTES: Final = 32
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_KEY_ID_BYTES: Final = 4
_ED25519_BYTES: Final = 64
_TIME_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a log says of itself: so many leaves have this root."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        """Refuse what has no form of text.

        Raises:
            InvalidInputError: The origin is none, or size or root are out of range.
        """
        if not _NAME.fullmatch(self.origin):
            raise InvalidInputError(f"{self.origin[:80]!r} is no origin of a log")
        if not 0 <= self.size <= MAX_TREE_SIZE or len(self.root) != HASH_BYTES:
            raise InvalidInputError(f"no tree of {self.size} leaves with a root of {len(self.root)} bytes")

    @property
    def text(self) -> str:
        """The note's text, with its last line break."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteSignature:
    """One line below a note."""

    name: str
    """Who signed, as a verifier knows the key."""
    key_id: bytes
    """Four bytes that tell apart keys of one name."""
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierKey:
    """A key of a log or a witness, as they are published (C2SP signed-note, "Verifier keys")."""

    name: str
    kind: int
    """`ED25519` or `COSIGNATURE`."""
    public: PublicKey

    @property
    def text(self) -> str:
        """``<name>+<key id>+<base64 of kind and key>``."""
        raw = self.public.spki_der[-_KEY_BYTES:]
        data = base64.b64encode(bytes([self.kind]) + raw).decode()
        return f"{self.name}+{key_id(self.name, self.public, self.kind).hex()}+{data}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCheckpoint:
    """A checkpoint with its signatures, none of which has been looked at yet."""

    checkpoint: Checkpoint
    signatures: tuple[NoteSignature, ...]

    @property
    def note(self) -> bytes:
        """The signed note."""
        return (self.checkpoint.text + "\n" + "".join(map(_line, self.signatures))).encode()


def log_origin(installation: str, epoch: int) -> str:
    """Return the name of an installation's log (design rule 16: what was restored begins a new one)."""
    return f"agentfactory.dev/log/{installation}/{epoch}"


def parse_verifier_key(text: str) -> VerifierKey:
    """Return what a verifier key says.

    Raises:
        MalformedError: It is none, or the key id in it is another key's.
        KeyFormatError: The key is not usable.
    """
    match = _VERIFIER_KEY.fullmatch(text)
    data = _decoded(match["data"]) if match is not None else b""
    if match is None or len(data) != 1 + _KEY_BYTES or data[0] not in {ED25519, COSIGNATURE}:
        raise MalformedError(f"{text[:80]!r} is no Ed25519 verifier key: <name>+<key id>+<base64>")
    key = VerifierKey(
        name=match["name"], kind=data[0], public=PublicKey.from_spki_der(_SPKI_PREFIX + data[1:])
    )
    if key.text != text:
        raise MalformedError(
            f"the key id of verifier key {match['name']} is {match['id']}, which is another key's"
        )
    return key


def key_id(name: str, key: PublicKey, kind: int = ED25519) -> bytes:
    """Return the four bytes that name an Ed25519 key below a note (C2SP signed-note, "Signatures").

    Raises:
        InvalidInputError: The key is of another kind.
    """
    if key.algorithm is not Algorithm.ED25519:
        raise InvalidInputError(f"a log is signed by Ed25519 keys, not {key.algorithm}")
    raw = key.spki_der[-_KEY_BYTES:]
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + raw).digest()[:_KEY_ID_BYTES]


async def sign_checkpoint(checkpoint: Checkpoint, signer: Signer, public: PublicKey) -> SignedCheckpoint:
    """Return the checkpoint with the log's own signature, under its origin as name.

    Raises:
        InvalidInputError: The key is not Ed25519.
        KeyUnavailableError: Its custodian does not answer.
    """
    named = key_id(checkpoint.origin, public)
    signature = await signer.sign(checkpoint.text.encode())
    line = NoteSignature(name=checkpoint.origin, key_id=named, signature=signature.value)
    return SignedCheckpoint(checkpoint=checkpoint, signatures=(line,))


def parse_checkpoint(note: bytes) -> SignedCheckpoint:
    """Return what a signed note says; believe nothing of it before its signatures were verified.

    Raises:
        MalformedError: It is no checkpoint, or has more than 64 signatures.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise MalformedError(f"a signed note of {len(note)} bytes, at most {MAX_NOTE_BYTES} are possible")
    try:
        text, mark, lines = note.decode("utf-8").partition("\n\n")
    except UnicodeDecodeError as error:
        raise MalformedError("a signed note is text") from error
    if not mark or not lines.endswith("\n"):
        raise MalformedError("a signed note has an empty line, and signatures that end with a line break")
    signatures = lines[:-1].split("\n")
    if len(signatures) > MAX_SIGNATURES:
        raise MalformedError(
            f"a note with {len(signatures)} signatures, at most {MAX_SIGNATURES} are possible"
        )
    return SignedCheckpoint(
        checkpoint=_parse_text(text), signatures=tuple(_parse_line(line) for line in signatures)
    )


def verify_log_signature(signed: SignedCheckpoint, *, origin: str, keys: Sequence[PublicKey]) -> Checkpoint:
    """Return the checkpoint if one of the log's keys signed it.

    Raises:
        UnknownKeyError: It is of another log, or none of the keys has signed it.
        SignatureInvalidError: A signature under one of the keys is not right.
    """
    if signed.checkpoint.origin != origin:
        raise UnknownKeyError(f"the checkpoint is of log {signed.checkpoint.origin!r}, not {origin!r}")
    known = {key_id(origin, key): key for key in keys}
    for line in signed.signatures:
        key = known.get(line.key_id) if line.name == origin else None
        if key is not None:
            key.verify(line.signature, signed.checkpoint.text.encode())
            return signed.checkpoint
    raise UnknownKeyError(f"no key of log {origin!r} has signed the checkpoint")


def verify_cosignatures(signed: SignedCheckpoint, witnesses: Mapping[str, PublicKey]) -> dict[str, int]:
    """Return the witnesses, by name, whose cosignature is right, and when each gave it, in POSIX seconds.

    A signature of somebody unknown is passed over; a wrong one of somebody known is not.

    Raises:
        SignatureInvalidError: A signature under a witness' key is not right.
    """
    known = {(name, key_id(name, key, COSIGNATURE)): key for name, key in witnesses.items()}
    found: dict[str, int] = {}
    for line in signed.signatures:
        key = known.get((line.name, line.key_id))
        if key is None:
            continue
        if len(line.signature) != _TIME_BYTES + _ED25519_BYTES:
            raise SignatureInvalidError(f"the cosignature of {line.name} has {len(line.signature)} bytes")
        (at,) = struct.unpack(">Q", line.signature[:_TIME_BYTES])
        key.verify(line.signature[_TIME_BYTES:], cosigned_text(signed.checkpoint, at))
        found[line.name] = at
    return found


def with_cosignatures(note: bytes, lines: Sequence[NoteSignature]) -> bytes:
    """Return a signed note with further signatures below its own."""
    return note + "".join(map(_line, lines)).encode()


def parse_signatures(lines: bytes) -> tuple[NoteSignature, ...]:
    """Return signatures that came without their note, a line each.

    Raises:
        MalformedError: They are none, or more than 64.
    """
    try:
        text = lines.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError("signatures of a note are text") from error
    if not text.endswith("\n"):
        raise MalformedError("signatures of a note end with a line break")
    found = text[:-1].split("\n")
    if len(found) > MAX_SIGNATURES:
        raise MalformedError(f"{len(found)} signatures, at most {MAX_SIGNATURES} are possible")
    return tuple(_parse_line(line) for line in found)


def cosigned_text(checkpoint: Checkpoint, at: int) -> bytes:
    """Return what a witness signs (C2SP tlog-cosignature, "Format")."""
    return f"cosignature/v1\ntime {at}\n{checkpoint.text}".encode()


def signature_line(signature: NoteSignature) -> bytes:
    """Return a signature as it stands below a note, with its line break."""
    return _line(signature).encode()


def _line(signature: NoteSignature) -> str:
    data = base64.b64encode(signature.key_id + signature.signature).decode()
    return f"\N{EM DASH} {signature.name} {data}\n"


def _parse_text(text: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) != 3 or not _NAME.fullmatch(lines[0]) or not _SIZE.fullmatch(lines[1]):  # noqa: PLR2004 - as the module says
        raise MalformedError("a checkpoint is origin, size and root, a line each")
    try:
        return Checkpoint(origin=lines[0], size=int(lines[1]), root=_decoded(lines[2]))
    except InvalidInputError as error:
        raise MalformedError(f"a checkpoint that cannot be: {error}") from error


def _parse_line(line: str) -> NoteSignature:
    match = _SIGNATURE.fullmatch(line)
    data = _decoded(match["data"]) if match is not None else b""
    if match is None or len(data) <= _KEY_ID_BYTES:
        raise MalformedError(f"{line[:80]!r} is no signature of a note")
    return NoteSignature(name=match["name"], key_id=data[:_KEY_ID_BYTES], signature=data[_KEY_ID_BYTES:])


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise MalformedError(f"{text[:80]!r} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise MalformedError(f"{text[:80]!r} is not base64 as it is written")
    return data
