"""Asking the kernel which pages were written."""

import ctypes
import mmap
import os

from cli.guests import written

PAGES = 40
SIZE = PAGES * written.PAGE_BYTES


def test_pages_that_were_written_are_named_whatever_was_written_to_them() -> None:
    content = os.urandom(SIZE)
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        place = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(place)
        written.begin(address, content)
        assert memory[:] == content
        assert written.pages(address, SIZE) == []
        memory[3 * 4096] = content[3 * 4096]
        memory[30 * 4096 - 1 : 30 * 4096 + 1] = b"ab"
        assert written.pages(address, SIZE) == [3, 29, 30]
        assert written.pages(address, 30 * 4096) == [3, 29]
        del place


def test_a_module_names_no_more_pages_than_it_may(monkeypatch) -> None:
    monkeypatch.setattr(written, "MAX_PAGES", 2)
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        place = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(place)
        written.begin(address, bytes(SIZE))
        memory[:] = b"x" * SIZE
        assert written.pages(address, SIZE) == [0, 1]
        del place
