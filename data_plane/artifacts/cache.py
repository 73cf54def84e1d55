"""Compiled modules and template envelopes on this node's disk, within a bound. Compiles and fetches nothing.

An artifact is handed out as a sealed memory file: its bytes were copied, hashed and compared with a seal by
this node, and nobody can change them after. What sits on the disk is never loaded itself.

The seal says whose word the code is: this node's own, or that of a compiler key. The latter counts only while
`trusts` says so, looked up anew at each use.
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from data_plane.artifacts.memory import (
    CHUNK_BYTES,
    Received,
    chunks_of,
    digest_of,
    digests_of,
    freeze,
    write_all,
)
from data_plane.artifacts.pieces import HeldPiece, HeldPieces
from data_plane.artifacts.seal import (
    PREFIX_BYTES,
    ArtifactKey,
    Seal,
    check_seal,
    encode_seal,
    header_length,
    seal,
)
from data_plane.artifacts.threads import opened, to_the_end
from data_plane.sandbox.domain import MAX_ARTIFACT_BYTES, EngineInfo
from shared.compiled import PIECE_BYTES
from shared.digests import DIGEST_BYTES, Digest, digest_from_raw, digest_to_raw
from shared.dsse import MAX_ENVELOPE_BYTES
from shared.errors import ArtifactInvalidError, DiskFullError, NotFoundError
from shared.ids import KeyId
from shared.logs import get_logger
from shared.manifest import Profile

logger = get_logger(__name__)

MAX_FRESH: Final = 4
"""Artifacts in memory at once that are on their way to the disk."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_ARTIFACT_SUFFIX: Final = ".artifact"
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_ENVELOPE_SUFFIX: Final = ".envelope"


def _trusts_nobody(_: KeyId) -> bool:
    return False


class ArtifactCache:
    """One folder, used by one node process."""

    def __init__(
        self,
        folder: Path,
        *,
        mac_key: bytes,
        engines: Mapping[Profile, EngineInfo],
        bound_bytes: int,
        trusts: Callable[[KeyId], bool] = _trusts_nobody,
        pieces: HeldPieces | None = None,
    ) -> None:
        self._folder = folder
        self._mac_key = mac_key
        self._engines = engines
        self._bound_bytes = bound_bytes
        self._trusts = trusts
        self._pieces = pieces or HeldPieces()
        self._known: dict[tuple[Digest, Profile], str] = {}
        """Who vouches for each: a compiler key, or, empty, this node itself."""
        self._fresh: dict[tuple[Digest, Profile], Received] = {}
        """What was received and is not on the disk yet."""
        self._writes: set[asyncio.Task[None]] = set()
        self._lock = threading.Lock()
        """Held by one thread at a time that looks for room and fills it."""
        self.hits = 0
        self.misses = 0
        self.evictions = 0

    def load(self) -> None:
        """Make the folder, remove half-written files, learn what is there. Verifies nothing yet."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._folder.glob("*.part"):
            leftover.unlink()
        for path in self._folder.glob(f"*{_ARTIFACT_SUFFIX}"):
            # Another engine's artifacts stay until the bound evicts them: an older build may come back.
            self._known |= {name: _vouched_by(path) for name in self._names_of(path)}

    def engine(self, profile: Profile) -> EngineInfo:
        """Return the engine that artifacts of a profile are for."""
        return self._engines[profile]

    def digests(self) -> tuple[Digest, ...]:
        """Return the modules of which an artifact is on the disk, as far as known, whatever its profile."""
        return tuple(sorted({digest for digest, _ in self._known}))

    def holds(self, module_digest: Digest, profile: Profile = Profile.DEFAULT) -> bool:
        """Whether an artifact of this module and profile is here and counts, as far as known."""
        return self.vouched_by(module_digest, profile) is not None

    def vouched_by(self, module_digest: Digest, profile: Profile) -> str | None:
        """Return who vouches for an artifact: a compiler key, or, empty, this node itself. None: none counts.

        One by a key that counts no more is dropped.
        """
        found = self._known.get((module_digest, profile))
        if found and not self._trusts(KeyId(found)):
            logger.warning(
                "an artifact was dropped: its compiler key counts no more",
                module_digest=module_digest,
                compiler_key_id=found,
            )
            self.drop(module_digest, profile)
            return None
        return found

    async def open(
        self, module_digest: Digest, profile: Profile = Profile.DEFAULT, *, vouched_by: str = ""
    ) -> int:
        """Verify the artifact of a module and return it as a sealed memory file; the caller closes it.

        It is one that this node compiled, or one for which exactly `vouched_by` vouches and still counts.

        Raises:
            NotFoundError: There is none.
            ArtifactInvalidError: It is damaged, not sealed by this node for this engine, or on the word of
                another key or of one that counts no more; it was dropped.
        """
        fresh = self._fresh.get((module_digest, profile))
        if fresh is not None and self._known.get((module_digest, profile)) == fresh.vouched_by:
            self._require_voucher(fresh.vouched_by, vouched_by)
            self.hits += 1
            # A description of its own: duplicates of one share where they read.
            return os.open(f"/proc/self/fd/{fresh.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        return await opened(self._open, module_digest, profile, vouched_by)

    async def store(self, module_digest: Digest, artifact: int, profile: Profile = Profile.DEFAULT) -> None:
        """Seal and keep the artifact in the descriptor `artifact`, evicting what was unused longest.

        Raises:
            DiskFullError: The disk, or the cache's bound, has no room.
        """
        while (module_digest, profile) in self._fresh:
            # Dropped, and on its way to the disk still: what is compiled here comes after it.
            await asyncio.wait(self._writes, return_when=asyncio.FIRST_COMPLETED)
        await to_the_end(self._store, module_digest, profile, artifact)

    async def keep(self, module_digest: Digest, profile: Profile, received: Received) -> None:
        """Have an artifact that was compiled elsewhere at once, and on the disk soon; takes its descriptor.

        It was verified by the caller. While others are on their way to the disk it waits for those.
        """
        try:
            while len(self._fresh) >= MAX_FRESH or (module_digest, profile) in self._fresh:
                await asyncio.wait(self._writes, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            os.close(received.descriptor)
            raise
        self._fresh[module_digest, profile] = received
        self._known[module_digest, profile] = received.vouched_by
        write = asyncio.create_task(self._write_fresh(module_digest, profile, received))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    async def settled(self) -> None:
        """Return when everything that was kept is on the disk."""
        while self._writes:
            await asyncio.wait(self._writes)

    async def read_envelope(self, template_digest: Digest) -> bytes | None:
        """Return a template's envelope as it was stored. It is not verified: the reader does that, always."""
        return await asyncio.to_thread(self._read_envelope, template_digest)

    async def store_envelope(self, template_digest: Digest, envelope: bytes) -> None:
        """Keep a template's envelope, evicting what was unused longest.

        Raises:
            DiskFullError: The disk, or the cache's bound, has no room.
        """
        await asyncio.to_thread(self._write_envelope, template_digest, envelope)

    def drop(self, module_digest: Digest, profile: Profile = Profile.DEFAULT) -> None:
        """Forget the artifact of a module."""
        self._known.pop((module_digest, profile), None)
        (self._folder / self._key(module_digest, profile).file_name).unlink(missing_ok=True)

    async def _write_fresh(self, module_digest: Digest, profile: Profile, received: Received) -> None:
        key = self._key(module_digest, profile)
        made = seal(
            key,
            artifact_digest=received.digest,
            artifact_bytes=received.size_bytes,
            vouched_by=received.vouched_by,
            mac_key=self._mac_key,
        )
        try:
            self._pieces.learn(await to_the_end(self._write_received, key, made, received))
        except (OSError, DiskFullError, ArtifactInvalidError) as error:
            # The run that wanted it has it already; the next one fetches it again.
            logger.warning("a received artifact was not kept", module_digest=module_digest, error=str(error))
            self._known.pop((module_digest, profile), None)
        finally:
            del self._fresh[module_digest, profile]
            os.close(received.descriptor)
        if self._known.get((module_digest, profile)) != received.vouched_by:
            # Dropped while it was on its way.
            self.drop(module_digest, profile)

    def _require_voucher(self, found: str, wanted: str) -> None:
        if not found:
            return
        if found != wanted:
            raise ArtifactInvalidError(f"artifact is on the word of another compiler key: {found}")
        if not self._trusts(KeyId(found)):
            raise ArtifactInvalidError(f"artifact is on the word of {found}, a key that counts no more")

    def _open(self, module_digest: Digest, profile: Profile, vouched_by: str) -> int:
        key = self._key(module_digest, profile)
        path = self._folder / key.file_name
        try:
            source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            self._known.pop((module_digest, profile), None)
            self.misses += 1
            raise NotFoundError(f"no artifact of module {module_digest} is cached") from error
        try:
            sealed = self._copy_verified(source, key, vouched_by)
            os.utime(source)
        except ArtifactInvalidError:
            logger.warning("a damaged artifact was dropped", module_digest=module_digest)
            self.drop(module_digest, profile)
            raise
        finally:
            os.close(source)
        self.hits += 1
        return sealed

    def _copy_verified(self, source: int, key: ArtifactKey, vouched_by: str) -> int:
        header = os.read(source, header_length(os.read(source, PREFIX_BYTES)))
        made = check_seal(header, key=key, mac_key=self._mac_key)
        self._require_voucher(made.vouched_by, vouched_by)
        memory = os.memfd_create("artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _copy(source, memory, made)
            freeze(memory)
        except BaseException:
            os.close(memory)
            raise
        return memory

    def _store(self, module_digest: Digest, profile: Profile, artifact: int) -> None:
        key = self._key(module_digest, profile)
        digest, size = digest_of(artifact)
        made = seal(key, artifact_digest=digest, artifact_bytes=size, mac_key=self._mac_key)
        self._write_sealed(key, made, artifact)
        self._known[module_digest, profile] = ""

    def _write_received(
        self, key: ArtifactKey, made: Seal, received: Received
    ) -> Sequence[tuple[Digest, HeldPiece]]:
        """Seal what this node has hashed itself, as always; return where its whole pieces are then."""
        digest, size, hashes = digests_of(received.descriptor, received.reused)
        if (digest, size) != (made.artifact_digest, made.artifact_bytes):
            raise ArtifactInvalidError("a received artifact is not of the digest that is stated of it")
        self._write_sealed(key, made, received.descriptor)
        path, start = self._folder / key.file_name, len(encode_seal(made))
        return [
            (packed, HeldPiece(path=path, offset=start + number * PIECE_BYTES, sha256=plain))
            for number, (packed, plain) in enumerate(zip(received.piece_digests, hashes, strict=False))
            if (number + 1) * PIECE_BYTES <= size
        ]

    def _write_sealed(self, key: ArtifactKey, made: Seal, artifact: int) -> None:
        head = encode_seal(made)
        with self._lock:
            self._make_room(len(head) + made.artifact_bytes)
            # Read a second time rather than held: what is between is only this node's, and the seal is of
            # the first time.
            self._write(self._folder / key.file_name, chain([head], chunks_of(artifact)))

    def _write_envelope(self, template_digest: Digest, envelope: bytes) -> None:
        with self._lock:
            self._make_room(len(envelope))
            self._write(self._envelope_path(template_digest), [envelope])

    def _make_room(self, needed: int) -> None:
        if needed > min(self._bound_bytes, MAX_ARTIFACT_BYTES):
            raise DiskFullError(f"a file of {needed} bytes is above the cache's bound of {self._bound_bytes}")
        files = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # dropped meanwhile
                if path.is_file():
                    files.append((path, path.stat()))
        used = sum(found.st_size for _, found in files)
        for path, found in sorted(files, key=lambda file: file[1].st_mtime_ns):
            if used + needed <= self._bound_bytes:
                return
            path.unlink(missing_ok=True)
            used -= found.st_size
            for name in self._names_of(path):
                self._known.pop(name, None)
                self.evictions += 1

    def _read_envelope(self, template_digest: Digest) -> bytes | None:
        try:
            with self._envelope_path(template_digest).open("rb") as file:
                os.utime(file.fileno())
                return file.read(MAX_ENVELOPE_BYTES + 1)
        except FileNotFoundError:
            return None

    def _write(self, path: Path, parts: Iterable[bytes]) -> None:
        part = ""
        try:
            descriptor, part = tempfile.mkstemp(suffix=".part", dir=self._folder)
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(parts)
            Path(part).replace(path)
        except OSError as error:
            if part:
                Path(part).unlink(missing_ok=True)
            if error.errno in _FULL:
                raise DiskFullError(f"no space for artifacts left in {self._folder}") from error
            raise

    def _envelope_path(self, template_digest: Digest) -> Path:
        return self._folder / f"{digest_to_raw(template_digest).hex()}{_ENVELOPE_SUFFIX}"

    def _key(self, module_digest: Digest, profile: Profile) -> ArtifactKey:
        return ArtifactKey(module_digest=module_digest, engine=self._engines[profile])

    def _names_of(self, path: Path) -> list[tuple[Digest, Profile]]:
        """Return which module and profile of this engine a file is of: one, or none."""
        digest = _module_of(path)
        return [
            (digest, profile)
            for profile in self._engines
            if digest is not None and path.name == self._key(digest, profile).file_name
        ]


def _vouched_by(path: Path) -> str:
    """Return who vouches for a file, as it says itself: whether that is true is seen when it is opened."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(header_length(file.read(PREFIX_BYTES))))
        return str(document.get("vouched_by", ""))
    except (OSError, ArtifactInvalidError, ValueError, AttributeError, RecursionError):
        return ""


def _module_of(path: Path) -> Digest | None:
    """Return the module that a file's name says it is of, if it is a name of ours."""
    name = path.name[: 2 * DIGEST_BYTES]
    if path.suffix != _ARTIFACT_SUFFIX or not _HEX.fullmatch(name):
        return None
    return digest_from_raw(bytes.fromhex(name))


def _copy(source: int, memory: int, made: Seal) -> None:
    state, size = hashlib.sha256(), 0
    while chunk := os.read(source, CHUNK_BYTES):
        size += len(chunk)
        if size > made.artifact_bytes:
            raise ArtifactInvalidError("artifact file is longer than its seal says")
        state.update(chunk)
        write_all(memory, chunk)
    if digest_from_raw(state.digest()) != made.artifact_digest:
        raise ArtifactInvalidError("artifact bytes are not the sealed ones")
