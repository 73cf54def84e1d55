"""What a compiling node states of the machine code that it made, and the pieces in which that code travels.

The statement binds one module, one engine to the last processor feature, and the exact bytes, also as they
travel: each piece is verified before it is unpacked. A compiler key of the keyset signs it. Who may believe
it, and when, is the keyset's and the reader's to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shared.canonical import canonical_json, parse_canonical
from shared.digests import Digest, parse_digest
from shared.dsse import sign_envelope, verify_envelope
from shared.errors import (
    DecompressionBombError,
    InvalidInputError,
    MalformedError,
    UnsupportedVersionError,
    VerificationError,
)
from shared.fields import Fields, time_to_text
from shared.ids import InstallationId, KeyId
from shared.manifest import Profile
from shared.signatures import PublicKey, Signer
from shared.zstd import zstd

FORMAT: Final = "agentfactory.compiled.v1"
COMPILED_TYPE: Final = "application/vnd.agentfactory.compiled.v1+json"
MAX_STATEMENT_BYTES: Final = 16 * 1024
MAX_ARTIFACT_BYTES: Final = 128 * 1024 * 1024
"""Bound of one compiled module."""

PIECE_BYTES: Final = 1024 * 1024
"""Each piece but the last has exactly so many bytes before they are compressed."""
MAX_PIECE_BYTES: Final = PIECE_BYTES + 64 * 1024
"""Of a compressed one: what cannot be compressed grows by a little."""
MAX_PIECES: Final = MAX_ARTIFACT_BYTES // PIECE_BYTES
LEVEL: Final = 9
"""Machine code shrinks to a third. It is packed once, beside seconds of compiling, and unpacked by every
node: that is a little faster than at the lowest level."""

_WINDOW_LOG: Final = 20
"""A piece needs no larger window; one that asks for it is refused before it gets the memory."""
_MAX_NAME_CHARS: Final = 64
_MAX_CPU_CHARS: Final = 1024
_NO_FEATURES: Final = "none"
"""How no processor features are written: a field is never empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The engine that machine code is for. Another value of any field is other code."""

    profile: Profile
    engine_name: str
    engine_version: str
    config_digest: str
    cpu_features: str
    """Sorted, comma-separated."""

    def __str__(self) -> str:
        features = self.cpu_features or "no features"
        return f"{self.engine_name} {self.engine_version} ({self.profile}, {features})"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledStatement:
    """These bytes are what this engine made of this module."""

    installation: InstallationId
    module_digest: Digest
    target: Target
    artifact_digest: Digest
    artifact_bytes: int
    piece_digests: tuple[Digest, ...]
    """Of the packed pieces, in their order."""
    compiled_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedStatement:
    """A statement that a compiler key signed."""

    statement: CompiledStatement
    key_id: KeyId
    """The key whose word it is: the lowest id, if several signed."""


async def sign_compiled(statement: CompiledStatement, signer: Signer) -> bytes:
    """Return the envelope of a statement.

    Raises:
        KeyUnavailableError: The key's custodian does not answer.
    """
    target = statement.target
    payload = canonical_json(
        {
            "type": FORMAT,
            "installation": statement.installation,
            "module_digest": statement.module_digest,
            "profile": str(target.profile),
            "engine_name": target.engine_name,
            "engine_version": target.engine_version,
            "config_digest": target.config_digest,
            "cpu_features": target.cpu_features or _NO_FEATURES,
            "artifact_digest": statement.artifact_digest,
            "artifact_bytes": statement.artifact_bytes,
            "piece_digests": list(statement.piece_digests),
            "compiled_at": time_to_text(statement.compiled_at),
        }
    )
    return await sign_envelope(COMPILED_TYPE, payload, [signer])


def verify_compiled(
    envelope: bytes, *, keys: Mapping[KeyId, PublicKey], installation: str
) -> VerifiedStatement:
    """Return the statement if, and only if, every check passes.

    1. A key of `keys` signed the exact bytes (`verify_envelope`), which are within the bound.
    2. They are a canonical statement of this format, without unknown fields.
    3. It is of this installation.

    Whether it is of the module and the engine at hand, and of the bytes that came, is the caller's to check.

    Raises:
        VerificationError: A check failed; the class says which kind.
        UnsupportedVersionError: Check 2, the format is of another version.
    """
    verified = verify_envelope(envelope, payload_type=COMPILED_TYPE, keys=keys, max_bytes=MAX_STATEMENT_BYTES)
    statement = _decode(verified.payload)
    if statement.installation != installation:
        raise VerificationError(
            f"check 3: statement is of installation {statement.installation!r}, expected {installation!r}"
        )
    return VerifiedStatement(statement=statement, key_id=min(verified.key_ids))


def _decode(payload: bytes) -> CompiledStatement:
    fields = Fields(parse_canonical(payload, max_bytes=MAX_STATEMENT_BYTES), "compiled statement")
    if (found := fields.text("type")) != FORMAT:
        raise UnsupportedVersionError(f"check 2: format is {found[:64]!r}, this build reads {FORMAT!r}")
    features = fields.text("cpu_features", max_chars=_MAX_CPU_CHARS)
    statement = CompiledStatement(
        installation=InstallationId(fields.text("installation", max_chars=_MAX_NAME_CHARS)),
        module_digest=fields.digest("module_digest"),
        target=Target(
            profile=_profile(fields),
            engine_name=fields.text("engine_name", max_chars=_MAX_NAME_CHARS),
            engine_version=fields.text("engine_version", max_chars=_MAX_NAME_CHARS),
            config_digest=fields.digest("config_digest"),
            cpu_features="" if features == _NO_FEATURES else features,
        ),
        artifact_digest=fields.digest("artifact_digest"),
        artifact_bytes=fields.integer("artifact_bytes", minimum=1, maximum=MAX_ARTIFACT_BYTES),
        piece_digests=_piece_digests(fields),
        compiled_at=fields.time("compiled_at"),
    )
    fields.end()
    if len(statement.piece_digests) != pieces_in(statement.artifact_bytes):
        raise MalformedError("check 2: the statement has another number of pieces than its bytes make")
    return statement


def pieces_in(size_bytes: int) -> int:
    """Return how many pieces so many bytes are."""
    return -(-size_bytes // PIECE_BYTES)


def piece_size(artifact_bytes: int, number: int) -> int:
    """Return how large the piece of this number is before it is packed: a whole one, but for the last."""
    return min(artifact_bytes - number * PIECE_BYTES, PIECE_BYTES)


def most_packed(artifact_bytes: int, number: int) -> int:
    """Return how large the packed piece of this number may be: it may grow by a little."""
    size = piece_size(artifact_bytes, number)
    return size + size // 128 + 1024


def _piece_digests(fields: Fields) -> tuple[Digest, ...]:
    try:
        return tuple(map(parse_digest, fields.texts("piece_digests", max_items=MAX_PIECES, max_chars=71)))
    except InvalidInputError as error:
        raise fields.invalid("piece_digests", "holds something else than digests") from error


def _profile(fields: Fields) -> Profile:
    text = fields.text("profile", max_chars=_MAX_NAME_CHARS)
    try:
        return Profile(text)
    except ValueError as error:
        raise fields.invalid("profile", "is not one of ours") from error


def pack_piece(piece: bytes) -> bytes:
    """Return a piece as it travels and is kept."""
    return zstd.compress(piece, LEVEL)


def unpack_piece(packed: bytes) -> bytes:
    """Return the piece in `packed`, never more than one piece's bytes.

    Raises:
        DecompressionBombError: It would be larger.
        MalformedError: It is not exactly one Zstandard frame with something in it.
    """
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    try:
        piece = decompressor.decompress(packed, max_length=PIECE_BYTES)
    except (zstd.ZstdError, EOFError) as error:
        raise MalformedError("a piece of an artifact does not decompress") from error
    if not decompressor.eof:
        if len(piece) == PIECE_BYTES:
            raise DecompressionBombError(f"a piece of an artifact is larger than {PIECE_BYTES} bytes")
        raise MalformedError("a piece of an artifact ends early")
    if decompressor.unused_data or not piece:
        raise MalformedError("a piece of an artifact is empty, or has something behind it")
    return piece
