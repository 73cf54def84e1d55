"""Puts an author's Python files and their dependencies where the runtime reads them at build time."""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Final

from shared.errors import AgentBuildError

DEPENDENCIES: Final = "requirements/"
"""What files of dependencies are under among a build's sources."""
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def bundle(runtime: Mapping[str, bytes], sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the runtime's files with its Python ones in one archive, and the agent's in one file beside it.

    Raises:
        AgentBuildError: A source file is not UTF-8.
    """
    python = {name.removeprefix("lib/"): data for name, data in runtime.items() if name.endswith(".py")}
    files = {name: data for name, data in runtime.items() if not name.endswith((".py", ".pyi", ".typed"))}
    files["lib/runtime.zip"] = _stored(python)
    own = {name: _text(name, data) for name, data in sources.items() if not name.startswith(DEPENDENCIES)}
    others = {
        name.removeprefix(DEPENDENCIES): _text(name, data)
        for name, data in sources.items()
        if name.startswith(DEPENDENCIES)
    }
    text = json.dumps({"own": own, "dependencies": others}, sort_keys=True)
    return files | {"agent/bundle.json": text.encode()}


def _stored(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), files[name])
    return out.getvalue()


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AgentBuildError(f"{name} is not UTF-8 at byte {error.start}") from error
