"""Packs the standard library that agents can import, as byte code in a stored zip. Run by Python 3.13.

standard_library.py LIB OUT.zip
"""

import importlib._bootstrap_external as bootstrap
import sys
import zipfile
from pathlib import Path

# Needs threads, processes, sockets, a terminal or a display, or is for people who develop Python.
LEFT_OUT = {
    "__pycache__", "_pyrepl", "ctypes", "curses", "dbm", "ensurepip", "idlelib", "lib2to3", "multiprocessing",
    "pydoc_data", "site-packages", "sqlite3", "test", "tests", "tkinter", "turtledemo", "venv", "wsgiref",
    "xmlrpc",
}  # fmt: skip
LEFT_OUT_FILES = {"antigravity.py", "doctest.py", "pydoc.py", "this.py", "turtle.py"}
EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(library: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(library.rglob("*.py")):
            name = path.relative_to(library)
            if LEFT_OUT.intersection(name.parts) or name.name in LEFT_OUT_FILES:
                continue
            code = compile(path.read_bytes(), f"<python>/{name}", "exec", dont_inherit=True)
            data = bootstrap._code_to_hash_pyc(code, b"\0" * 8, checked=False)  # noqa: SLF001 - py_compile writes files
            archive.writestr(zipfile.ZipInfo(f"{name}c", EPOCH), data)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
