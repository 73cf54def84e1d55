"""Finds out which pages of a guest's memory a run writes, those included that hold the same bytes afterwards.

The kernel is asked: the memory is mapped privately from a file, and what was written since is a copy.
"""

import ctypes
import mmap
import os
from pathlib import Path
from typing import Final

PAGE_BYTES: Final = 4096
MAX_PAGES: Final = 4096
"""What a module may say; as data_plane/engine/module/src/pages.rs."""
_PAGEMAP: Final = Path("/proc/self/pagemap")
_ENTRY_BYTES: Final = 8
_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61
"""Documentation/admin-guide/mm/pagemap.rst of Linux."""
_MAP_FIXED: Final = 0x10
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]


def can_tell() -> bool:
    """Tell whether this kernel can; numbers of larger pages would make another module than elsewhere."""
    return mmap.PAGESIZE == PAGE_BYTES and os.access(_PAGEMAP, os.R_OK)


def begin(address: int, content: bytes) -> None:
    """Let the memory at a page's border, nothing of which was written, be `content`, whole pages of it.

    Raises:
        OSError: The kernel maps no file there; the memory must not be used any more.
    """
    file = os.memfd_create("agentfactory-start")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(file, view) :]
        access, how = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED
        if _libc.mmap(address, len(content), access, how, file, 0) != address:
            raise OSError(ctypes.get_errno(), "a memory cannot be mapped")
    finally:
        os.close(file)


def pages(address: int, size: int) -> list[int]:
    """Return the numbers of the pages that were written since `begin`, as many as a module may say."""
    with _PAGEMAP.open("rb", buffering=0) as file:
        file.seek(address // PAGE_BYTES * _ENTRY_BYTES)
        entries = memoryview(file.read(size // PAGE_BYTES * _ENTRY_BYTES)).cast("Q")
    own = [n for n, entry in enumerate(entries) if entry & (_PRESENT | _SWAPPED) and not entry & _OF_FILE]
    return own[:MAX_PAGES]
