"""What a start may see of the world: its own files, and what it must not ask for."""

import struct

import pytest

from cli.guests.build_wasi import BADF, CLOCK_NS, NOENT, NOSYS, OK, ROFS, BuildWasi, Exited, Phase
from cli.guests.frozen import Frozen

FILES = {"lib/boot.js": b"0123456789", "agent/agent.js": b"x"}


def opened(wasi: BuildWasi, memory: memoryview, path: bytes, flags: int = 0) -> int:
    memory[0 : len(path)] = path
    return wasi.call("path_open", memory, (3, 0, 0, len(path), flags, 0, 0, 0, 500))


@pytest.fixture
def memory() -> memoryview:
    return memoryview(bytearray(4096))


def test_a_file_is_read_and_sought(memory: memoryview) -> None:
    wasi = BuildWasi(FILES)
    assert opened(wasi, memory, b"lib/./boot.js") == OK
    (fd,) = struct.unpack_from("<I", memory, 500)
    struct.pack_into("<II", memory, 600, 700, 4)
    assert wasi.call("fd_seek", memory, (fd, -4, 2, 900)) == OK
    assert wasi.call("fd_read", memory, (fd, 600, 1, 800)) == OK
    assert bytes(memory[700:704]) == b"6789"
    assert wasi.call("fd_close", memory, (fd,)) == OK
    assert wasi.call("fd_read", memory, (fd, 600, 1, 800)) == BADF


@pytest.mark.parametrize("path", [b"/etc/passwd", b"../etc/passwd", b"lib", b"lib/../../etc/passwd", b""])
def test_nothing_of_this_machine_is_there(memory: memoryview, path: bytes) -> None:
    assert opened(BuildWasi(FILES), memory, path) == NOENT


def test_nothing_can_be_made_or_listed(memory: memoryview) -> None:
    wasi = BuildWasi(FILES)
    assert opened(wasi, memory, b"new", flags=1) == ROFS
    for name in ("path_unlink_file", "fd_readdir", "path_symlink", "sock_accept", "_froze", "call", "log"):
        assert wasi.call(name, memory, (3, 0, 0)) == NOSYS


def test_open_files_are_bounded(memory: memoryview) -> None:
    wasi = BuildWasi(FILES)
    answers = [opened(wasi, memory, b"agent/agent.js") for _ in range(100)]
    assert answers.count(OK) == 64


def test_the_world_is_the_same_each_time(memory: memoryview) -> None:
    seen = []
    for _ in range(2):
        wasi = BuildWasi(FILES)
        wasi.call("random_get", memory, (0, 32))
        wasi.call("clock_time_get", memory, (0, 0, 32))
        seen.append(bytes(memory[:40]))
    assert seen[0] == seen[1]
    assert struct.unpack_from("<Q", memory, 32) == (CLOCK_NS,)


def test_only_what_the_agent_asks_for_is_frozen(memory: memoryview) -> None:
    wasi = BuildWasi(FILES)
    wasi.call("random_get", memory, (0, 8))
    assert wasi.frozen == set()
    wasi.phase = Phase.AGENT
    wasi.call("random_get", memory, (0, 8))
    wasi.call("clock_time_get", memory, (0, 0, 8))
    assert wasi.frozen == {Frozen.RANDOM, Frozen.CLOCK}


def test_the_log_is_bounded(memory: memoryview) -> None:
    wasi = BuildWasi(FILES)
    struct.pack_into("<II", memory, 0, 100, 3000)
    for _ in range(100):
        assert wasi.call("fd_write", memory, (2, 0, 1, 8)) == OK
    assert len(wasi.log) == 64 * 1024


def test_an_exit_is_told(memory: memoryview) -> None:
    with pytest.raises(Exited) as ended:
        BuildWasi(FILES).call("proc_exit", memory, (70,))
    assert ended.value.code == 70
