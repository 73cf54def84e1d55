"""Whatever a guest leaves behind, its folder is empty afterwards and nothing else was touched."""

import contextlib
import os
import stat
import threading
from pathlib import Path

import pytest

from data_plane.sandbox import scratch
from data_plane.sandbox.scratch import ScratchFolders, empty_folder, max_entries
from shared.errors import ResourceExhaustedError

NAME = "d" * 20


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the scratch, with a file that must still be there."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "kept").write_text("kept")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "scratch"
    made.mkdir()
    return made


def make_deep(folder: Path, depth: int) -> None:
    """Directories whose whole path no system call could name."""
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(NAME, dir_fd=descriptor)
        below = os.open(NAME, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)


def test_links_are_removed_and_never_followed(folder, outside):
    (folder / "to_folder").symlink_to(outside)
    (folder / "to_file").symlink_to(outside / "kept")
    (folder / "to_etc").symlink_to("/etc")
    (folder / "to_itself").symlink_to("to_itself")
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to("../..")
    os.link(outside / "kept", folder / "hard")

    empty_folder(folder, max_entries=max_entries(10))

    assert list(folder.iterdir()) == []
    assert (outside / "kept").read_text() == "kept"
    assert (outside / "kept").stat().st_nlink == 1


def test_depth_takes_neither_stack_nor_descriptors(folder):
    make_deep(folder, 1_100)
    open_before = len(list(Path("/proc/self/fd").iterdir()))

    empty_folder(folder, max_entries=max_entries(1_101))

    assert list(folder.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_what_the_guest_made_inaccessible_is_removed_too(folder):
    (folder / "a" / "b" / "c").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("x")
    (folder / "a" / "b" / "file").chmod(0)
    for path in ("a/b/c", "a/b", "a", "."):
        (folder / path).chmod(0)

    as_nobody(lambda: empty_folder(folder, max_entries=max_entries(10)), owned=folder)

    assert list(folder.iterdir()) == []


def as_nobody(work, *, owned: Path) -> None:
    """Do it in a process without rights of its own over files; root would pass over permissions."""
    nobody = 65534
    if os.geteuid() == 0:
        for path in (*owned.parents, owned):
            if path.is_relative_to("/tmp/") or "pytest" in str(path):
                path.chmod(0o755)
        for path in (owned, *owned.rglob("*")):
            os.chown(path, nobody, nobody, follow_symlinks=False)
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(nobody)
                os.setuid(nobody)
            work()
        except BaseException:  # noqa: BLE001 - the exit code tells it
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_names_like_our_own_do_not_stop_it(folder):
    for number in range(50):
        (folder / f".up-{number}" / "x" / "y").mkdir(parents=True)
    (folder / "many" / "below").mkdir(parents=True)

    empty_folder(folder, max_entries=max_entries(152))

    assert list(folder.iterdir()) == []


def test_work_is_bounded(folder):
    for number in range(100):
        (folder / f"{number}").write_text("")
    with pytest.raises(ResourceExhaustedError):
        empty_folder(folder, max_entries=99)


def test_a_folder_that_became_a_link_is_not_emptied(tmp_path, outside):
    (tmp_path / "scratch").symlink_to(outside)
    with pytest.raises(OSError, match=r"directory|symbolic"):
        empty_folder(tmp_path / "scratch", max_entries=10)
    assert (outside / "kept").exists()


def test_a_directory_that_becomes_a_link_meanwhile_is_not_followed(folder, outside, monkeypatch):
    (folder / "victim").mkdir()
    opened = scratch._open_ours

    def too_late(name: str, parent: int | None) -> int:
        if name == "victim" and (folder / "victim").is_dir() and not (folder / "victim").is_symlink():
            (folder / "victim").rmdir()
            (folder / "victim").symlink_to(outside)
        return opened(name, parent)

    monkeypatch.setattr(scratch, "_open_ours", too_late)
    empty_folder(folder, max_entries=max_entries(10))
    assert list(folder.iterdir()) == []
    assert (outside / "kept").exists()


def test_somebody_who_changes_it_meanwhile_leads_nowhere_and_keeps_nobody_busy(folder, outside):
    ended = threading.Event()

    def disturb() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            with contextlib.suppress(OSError):
                (folder / "a" / "b").mkdir(parents=True)
                (folder / "a" / "b" / "file").write_text("x")
                (folder / "a").rename(folder / f"moved-{number}")
                (folder / "a").symlink_to(outside)
                (folder / f"moved-{number}" / "b").rename(folder / "b")
                (folder / "a").unlink()

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        for _ in range(20):
            with contextlib.suppress(ResourceExhaustedError):
                empty_folder(folder, max_entries=2_000)
    finally:
        ended.set()
        disturbing.join()
    empty_folder(folder, max_entries=10_000)
    assert list(folder.iterdir()) == []
    assert (outside / "kept").read_text() == "kept"


def test_a_start_removes_what_an_earlier_process_left(tmp_path):
    root = tmp_path / "data" / "scratch"
    (root / "1").mkdir(parents=True)
    make_deep(root / "1", 50)
    root.chmod(0o755)
    folders = ScratchFolders(root)
    folders.clear()
    assert list(root.iterdir()) == []
    made = folders.make()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    # A root node's workers are nobody; they get the folder as a descriptor, and nobody else comes past the one above.
    assert stat.S_IMODE(made.stat().st_mode) == (0o777 if os.geteuid() == 0 else 0o700)
    assert folders.make() != made
    (made / "x").mkdir()
    folders.remove(made)
    assert not made.exists()
