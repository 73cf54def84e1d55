"""The cache on a real folder: what it hands out is what it sealed, whatever happens to its files."""

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from data_plane.artifacts import cache as cache_module
from data_plane.artifacts.cache import ArtifactCache
from data_plane.artifacts.memory import Received, memory_file
from shared.digests import sha256_digest
from shared.errors import ArtifactInvalidError, DiskFullError, NotFoundError
from shared.manifest import Profile
from tests.unit.data_plane.builders import ENGINE, ENGINES

CODE = os.urandom(3_000_000)
MODULE = sha256_digest(b"module")
BOUND_S = 30.0


def a_cache(folder, *, bound_bytes=1 << 30, mac_key=b"k" * 32, engine=ENGINE) -> ArtifactCache:
    engines = ENGINES | {Profile.DEFAULT: engine}
    cache = ArtifactCache(folder, mac_key=mac_key, engines=engines, bound_bytes=bound_bytes)
    cache.load()
    return cache


async def store(cache, module=MODULE, code=CODE) -> None:
    descriptor = memory_file("code", code)
    try:
        await cache.store(module, descriptor)
    finally:
        os.close(descriptor)


async def load(cache, module=MODULE) -> bytes:
    descriptor = await cache.open(module)
    try:
        return os.pread(descriptor, len(CODE) + 1, 0)
    finally:
        os.close(descriptor)


def only_file(folder):
    (path,) = folder.glob("*.artifact")
    return path


async def test_artifact_comes_back_after_a_restart(tmp_path):
    await store(a_cache(tmp_path))

    cache = a_cache(tmp_path)

    assert cache.digests() == (MODULE,)
    assert await load(cache) == CODE


async def test_nobody_can_change_what_was_verified(tmp_path):
    cache = a_cache(tmp_path)
    await store(cache)
    descriptor = await cache.open(MODULE)

    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(descriptor, b"evil", 0)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(descriptor, 0)
    only_file(tmp_path).write_bytes(b"evil")
    assert os.pread(descriptor, len(CODE), 0) == CODE
    os.close(descriptor)


@pytest.mark.parametrize("position", [0, 9, 100, 500, 1_000_000, -1])
async def test_corrupted_file_is_dropped(tmp_path, position):
    cache = a_cache(tmp_path)
    await store(cache)
    path = only_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)

    with pytest.raises(ArtifactInvalidError):
        await cache.open(MODULE)
    assert not path.exists()
    assert not cache.holds(MODULE)
    with pytest.raises(NotFoundError):
        await cache.open(MODULE)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda _: b""])
async def test_file_of_another_length_is_dropped(tmp_path, change):
    cache = a_cache(tmp_path)
    await store(cache)
    path = only_file(tmp_path)
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(ArtifactInvalidError):
        await cache.open(MODULE)


async def test_artifact_of_another_module_under_this_name(tmp_path):
    cache = a_cache(tmp_path)
    await store(cache)
    path = only_file(tmp_path)
    other = sha256_digest(b"other")
    await store(cache, other, b"evil")
    (theirs,) = set(tmp_path.glob("*.artifact")) - {path}
    path.write_bytes(theirs.read_bytes())

    with pytest.raises(ArtifactInvalidError):
        await cache.open(MODULE)


async def test_an_artifact_is_of_one_profile_whatever_its_file_is_called(tmp_path):
    cache = a_cache(tmp_path)
    await store(cache)
    assert not cache.holds(MODULE, Profile.DETERMINISTIC)
    with pytest.raises(NotFoundError):
        await cache.open(MODULE, Profile.DETERMINISTIC)

    fast = only_file(tmp_path)
    metered = tmp_path / cache._key(MODULE, Profile.DETERMINISTIC).file_name
    metered.write_bytes(fast.read_bytes())
    with pytest.raises(ArtifactInvalidError, match="another module, profile"):
        await cache.open(MODULE, Profile.DETERMINISTIC)


async def test_a_profile_is_found_again_after_a_restart_and_dropped_alone(tmp_path):
    cache = a_cache(tmp_path)
    await store(cache)
    descriptor = memory_file("code", CODE)
    await cache.store(MODULE, descriptor, Profile.PORTABLE)
    os.close(descriptor)

    again = a_cache(tmp_path)
    assert (again.digests(), again.holds(MODULE, Profile.PORTABLE)) == ((MODULE,), True)
    again.drop(MODULE, Profile.PORTABLE)
    assert (again.holds(MODULE, Profile.PORTABLE), again.holds(MODULE)) == (False, True)


async def test_artifact_sealed_elsewhere(tmp_path):
    await store(a_cache(tmp_path, mac_key=b"o" * 32))

    with pytest.raises(ArtifactInvalidError):
        await a_cache(tmp_path).open(MODULE)


async def test_symbolic_link_is_not_followed(tmp_path):
    cache = a_cache(tmp_path / "cache")
    await store(cache)
    path = only_file(tmp_path / "cache")
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")

    with pytest.raises(NotFoundError):
        await cache.open(MODULE)


async def test_bound_evicts_what_was_unused_longest(tmp_path):
    cache = a_cache(tmp_path, bound_bytes=3 * 1_000_100 + 3_000)
    modules = [sha256_digest(bytes([n])) for n in range(4)]
    for age, module in enumerate(modules[:3]):
        await store(cache, module, bytes(1_000_000))
        path = tmp_path / cache._key(module, Profile.DEFAULT).file_name
        os.utime(path, (1000 + age, 1000 + age))
    await load(cache, modules[0])

    await store(cache, modules[3], bytes(1_000_000))

    assert set(cache.digests()) == {modules[0], modules[2], modules[3]}
    assert cache.evictions == 1


async def test_artifact_above_the_bound(tmp_path):
    with pytest.raises(DiskFullError):
        await store(a_cache(tmp_path, bound_bytes=1_000_000))


async def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    cache = a_cache(tmp_path)
    real = cache_module.Path.replace

    def full(self, target):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(cache_module.Path, "replace", full)
    with pytest.raises(DiskFullError):
        await store(cache)
    monkeypatch.setattr(cache_module.Path, "replace", real)

    assert list(tmp_path.iterdir()) == []
    await store(cache)
    assert await load(cache) == CODE


@pytest.mark.parametrize("header", [b"[" * 8000, b"[]", b"\xff", b'{"vouched_by": "key"}'])
async def test_a_node_starts_and_drops_a_file_whose_seal_is_none(tmp_path, header):
    await store(a_cache(tmp_path))
    path = only_file(tmp_path)
    path.write_bytes(b"AFARTF02" + len(header).to_bytes(4, "big") + header)

    cache = a_cache(tmp_path)

    with pytest.raises(ArtifactInvalidError):
        await load(cache)
    assert not path.exists()


async def test_half_written_files_are_removed_at_the_start(tmp_path):
    (tmp_path / "x.part").write_bytes(b"half")

    a_cache(tmp_path)

    assert list(tmp_path.iterdir()) == []


async def test_files_that_are_not_ours_are_left_alone(tmp_path):
    for name in ("notes.artifact", "z" * 64 + "-a-b.artifact", "README"):
        (tmp_path / name).write_bytes(b"x")

    cache = a_cache(tmp_path)

    assert cache.digests() == ()
    await store(cache)
    assert await load(cache) == CODE


async def test_envelopes_count_against_the_bound_like_artifacts(tmp_path):
    cache = a_cache(tmp_path, bound_bytes=1 << 20)
    for number in range(40):
        await cache.store_envelope(sha256_digest(b"%d" % number), b"e" * 300_000)

    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1 << 20
    assert await cache.read_envelope(sha256_digest(b"39")) == b"e" * 300_000
    assert await cache.read_envelope(sha256_digest(b"0")) is None


async def test_envelope_that_is_read_stays_longer(tmp_path):
    cache = a_cache(tmp_path, bound_bytes=1 << 20)
    for number in range(3):
        await cache.store_envelope(sha256_digest(b"%d" % number), b"e" * 300_000)
        os.utime(cache._envelope_path(sha256_digest(b"%d" % number)), ns=(number, number))

    await cache.read_envelope(sha256_digest(b"0"))
    await cache.store_envelope(sha256_digest(b"3"), b"e" * 300_000)

    assert await cache.read_envelope(sha256_digest(b"0")) is not None
    assert await cache.read_envelope(sha256_digest(b"1")) is None


class Held:
    """Lets a thread wait where the test says, until the test lets it go on."""

    def __init__(self, call) -> None:
        self.call, self.reached, self.may_go_on = call, threading.Event(), threading.Event()

    def __call__(self, *args, **options):
        self.reached.set()
        assert self.may_go_on.wait(BOUND_S)
        return self.call(*args, **options)

    async def cancels(self, task) -> None:
        """Cancel a task whose thread is held, and let the thread end; the task may wait for that."""
        assert await asyncio.to_thread(self.reached.wait, BOUND_S)
        task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_an_artifact_that_nobody_waits_for_any_more_is_closed(tmp_path, monkeypatch):
    """A run that is cancelled while its artifact is opened must not leave 128 MiB of memory behind."""
    cache = a_cache(tmp_path)
    await store(cache)
    before = open_files()
    held = Held(cache_module.freeze)
    monkeypatch.setattr(cache_module, "freeze", held)

    opening = asyncio.create_task(cache.open(MODULE))
    await held.cancels(opening)
    held.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await asyncio.get_running_loop().shutdown_default_executor()
    await asyncio.sleep(0)

    assert open_files() == before


async def test_a_cancelled_store_seals_nothing_else_that_got_its_descriptor(tmp_path, monkeypatch):
    """The number of a closed descriptor is given to the next file: another module's machine code."""
    cache = a_cache(tmp_path)
    held = Held(cache_module.digest_of)
    monkeypatch.setattr(cache_module, "digest_of", held)

    storing = asyncio.create_task(store(cache, code=b"its own"))
    await held.cancels(storing)
    others = [memory_file("code", b"another module's") for _ in range(3)]
    held.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await storing
    await asyncio.get_running_loop().shutdown_default_executor()
    for other in others:
        os.close(other)

    assert b"another module's" not in only_file(tmp_path).read_bytes()


def received(code=CODE, *, vouched_by="one") -> Received:
    return Received(
        descriptor=memory_file("code", code),
        digest=sha256_digest(code),
        size_bytes=len(code),
        vouched_by=vouched_by,
        piece_digests=(sha256_digest(b"packed"),),
        reused={},
    )


def trusting(folder, keys) -> ArtifactCache:
    cache = ArtifactCache(
        folder, mac_key=b"k" * 32, engines=ENGINES, bound_bytes=1 << 30, trusts=lambda key: key in keys
    )
    cache.load()
    return cache


async def load_for(cache, vouched_by) -> bytes:
    descriptor = await cache.open(MODULE, vouched_by=vouched_by)
    try:
        return os.pread(descriptor, len(CODE) + 1, 0)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("mark", ["", "two"])
@pytest.mark.parametrize("where", ["on its way", "on the disk"])
async def test_a_worker_gets_nothing_on_the_word_of_a_key_that_is_not_its_mark(tmp_path, where, mark):
    cache = trusting(tmp_path, {"one", "two"})
    await cache.keep(MODULE, Profile.DEFAULT, received())
    if where == "on the disk":
        await cache.settled()

    with pytest.raises(ArtifactInvalidError, match="another compiler key"):
        await cache.open(MODULE, vouched_by=mark)
    await cache.settled()


@pytest.mark.parametrize("where", ["on its way", "on the disk"])
async def test_the_word_of_a_key_is_asked_for_when_the_artifact_is_opened(tmp_path, where):
    keys = {"one"}
    cache = trusting(tmp_path, keys)
    await cache.keep(MODULE, Profile.DEFAULT, received())
    if where == "on the disk":
        await cache.settled()
    assert await load_for(cache, "one") == CODE
    keys.clear()

    with pytest.raises(ArtifactInvalidError, match="counts no more"):
        await cache.open(MODULE, vouched_by="one")
    await cache.settled()


async def test_what_is_dropped_on_its_way_to_the_disk_is_gone(tmp_path):
    cache = trusting(tmp_path, {"one"})
    await cache.keep(MODULE, Profile.DEFAULT, received())
    cache.drop(MODULE)

    with pytest.raises(NotFoundError):
        await cache.open(MODULE, vouched_by="one")
    await cache.settled()

    assert not list(tmp_path.iterdir())


async def test_what_is_compiled_here_replaces_what_is_on_its_way(tmp_path):
    cache = trusting(tmp_path, {"one"})
    await cache.keep(MODULE, Profile.DEFAULT, received(b"theirs"))
    cache.drop(MODULE)
    await store(cache, code=b"ours")
    await cache.settled()

    assert cache.vouched_by(MODULE, Profile.DEFAULT) == ""
    assert await load_for(cache, "") == b"ours"


async def test_of_two_that_are_received_one_after_the_other_the_second_stays(tmp_path):
    cache = trusting(tmp_path, {"one", "two"})
    before = open_files()
    await cache.keep(MODULE, Profile.DEFAULT, received(b"first"))
    await cache.keep(MODULE, Profile.DEFAULT, received(b"second", vouched_by="two"))
    assert await load_for(cache, "two") == b"second"
    await cache.settled()

    assert await load_for(cache, "two") == b"second"
    assert open_files() == before


async def test_what_was_received_is_closed_when_nobody_waits_for_its_turn(tmp_path, monkeypatch):
    cache = a_cache(tmp_path)
    held = Held(cache_module.digests_of)
    monkeypatch.setattr(cache_module, "digests_of", held)
    before = open_files()
    for number in range(cache_module.MAX_FRESH):
        await cache.keep(sha256_digest(bytes([number])), Profile.DEFAULT, received())

    waiting = asyncio.create_task(cache.keep(MODULE, Profile.DEFAULT, received()))
    await held.cancels(waiting)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held.may_go_on.set()
    await cache.settled()

    assert open_files() == before
