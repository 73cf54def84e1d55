"""Compiled modules and template envelopes on this node's disk, within a bound. Compiles and fetches nothing.

An artifact is handed out as a sealed memory file: its bytes were copied, hashed and compared with a seal by
this node, and nobody can change them after. What sits on the disk is never loaded itself.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Final

from data_plane.artifacts.seal import (
    PREFIX_BYTES,
    ArtifactKey,
    Seal,
    check_seal,
    encode_seal,
    header_length,
    seal,
)
from data_plane.sandbox.domain import MAX_ARTIFACT_BYTES, EngineInfo
from shared.digests import DIGEST_BYTES, Digest, digest_from_raw, digest_to_raw
from shared.dsse import MAX_ENVELOPE_BYTES
from shared.errors import ArtifactInvalidError, DiskFullError, NotFoundError
from shared.logs import get_logger
from shared.manifest import Profile

logger = get_logger(__name__)

CHUNK_BYTES: Final = 1024 * 1024

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_ARTIFACT_SUFFIX: Final = ".artifact"
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_ENVELOPE_SUFFIX: Final = ".envelope"


class ArtifactCache:
    """One folder, used by one node process."""

    def __init__(
        self, folder: Path, *, mac_key: bytes, engines: Mapping[Profile, EngineInfo], bound_bytes: int
    ) -> None:
        self._folder = folder
        self._mac_key = mac_key
        self._engines = engines
        self._bound_bytes = bound_bytes
        self._known: set[tuple[Digest, Profile]] = set()
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
            self._known.update(self._names_of(path))

    def digests(self) -> tuple[Digest, ...]:
        """Return the modules of which an artifact is on the disk, as far as known, whatever its profile."""
        return tuple(sorted({digest for digest, _ in self._known}))

    def holds(self, module_digest: Digest, profile: Profile = Profile.DEFAULT) -> bool:
        """Whether an artifact of this module and profile is on the disk, as far as known."""
        return (module_digest, profile) in self._known

    async def open(self, module_digest: Digest, profile: Profile = Profile.DEFAULT) -> int:
        """Verify the artifact of a module and return it as a sealed memory file; the caller closes it.

        Raises:
            NotFoundError: There is none.
            ArtifactInvalidError: It is damaged or not sealed by this node for this engine; it was dropped.
        """
        return await asyncio.to_thread(self._open, module_digest, profile)

    async def store(self, module_digest: Digest, artifact: int, profile: Profile = Profile.DEFAULT) -> None:
        """Seal and keep the artifact in the descriptor `artifact`, evicting what was unused longest.

        Raises:
            DiskFullError: The disk, or the cache's bound, has no room.
        """
        await asyncio.to_thread(self._store, module_digest, profile, artifact)

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
        self._known.discard((module_digest, profile))
        (self._folder / self._key(module_digest, profile).file_name).unlink(missing_ok=True)

    def _open(self, module_digest: Digest, profile: Profile) -> int:
        key = self._key(module_digest, profile)
        path = self._folder / key.file_name
        try:
            source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            self._known.discard((module_digest, profile))
            self.misses += 1
            raise NotFoundError(f"no artifact of module {module_digest} is cached") from error
        try:
            sealed = self._copy_verified(source, key)
            os.utime(source)
        except ArtifactInvalidError:
            logger.warning("a damaged artifact was dropped", module_digest=module_digest)
            self.drop(module_digest, profile)
            raise
        finally:
            os.close(source)
        self.hits += 1
        return sealed

    def _copy_verified(self, source: int, key: ArtifactKey) -> int:
        header = os.read(source, header_length(os.read(source, PREFIX_BYTES)))
        made = check_seal(header, key=key, mac_key=self._mac_key)
        memory = os.memfd_create("artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _copy(source, memory, made)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            os.lseek(memory, 0, os.SEEK_SET)
        except BaseException:
            os.close(memory)
            raise
        return memory

    def _store(self, module_digest: Digest, profile: Profile, artifact: int) -> None:
        key = self._key(module_digest, profile)
        state, size = hashlib.sha256(), 0
        for chunk in _chunks(artifact):
            state.update(chunk)
            size += len(chunk)
        digest = digest_from_raw(state.digest())
        made = seal(key, artifact_digest=digest, artifact_bytes=size, mac_key=self._mac_key)
        head = encode_seal(made)
        with self._lock:
            self._make_room(len(head) + size)
            # Read a second time rather than held: what is between is only this node's, and the seal is of
            # the first time.
            self._write(self._folder / key.file_name, chain([head], _chunks(artifact)))
        self._known.add((module_digest, profile))

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
                self._known.discard(name)
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


def _module_of(path: Path) -> Digest | None:
    """Return the module that a file's name says it is of, if it is a name of ours."""
    name = path.name[: 2 * DIGEST_BYTES]
    if path.suffix != _ARTIFACT_SUFFIX or not _HEX.fullmatch(name):
        return None
    return digest_from_raw(bytes.fromhex(name))


def _chunks(descriptor: int) -> Iterator[bytes]:
    """Yield what a file holds, from its beginning, wherever its descriptor stands."""
    offset = 0
    while chunk := os.pread(descriptor, CHUNK_BYTES, offset):
        yield chunk
        offset += len(chunk)


def _copy(source: int, memory: int, made: Seal) -> None:
    state, size = hashlib.sha256(), 0
    while chunk := os.read(source, CHUNK_BYTES):
        size += len(chunk)
        if size > made.artifact_bytes:
            raise ArtifactInvalidError("artifact file is longer than its seal says")
        state.update(chunk)
        _write_all(memory, chunk)
    if digest_from_raw(state.digest()) != made.artifact_digest:
        raise ArtifactInvalidError("artifact bytes are not the sealed ones")


def memory_file(name: str, content: bytes) -> int:
    """Return `content` as a sealed memory file; the caller closes it."""
    memory = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _write_all(memory, content)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        os.lseek(memory, 0, os.SEEK_SET)
    except BaseException:
        os.close(memory)
        raise
    return memory


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
