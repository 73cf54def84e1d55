"""Where runtimes are: the distributions agentfactory-python and agentfactory-javascript, or a folder."""

import importlib.util
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from cli.guests.project import Language
from shared.errors import UnavailableError

PACKAGES: Final = {
    Language.PYTHON: "agentfactory_python",
    Language.JAVASCRIPT: "agentfactory_javascript",
}
_WHEEL: Final = "install the wheel agentfactory-{} of your release, or in a checkout: make guests"
HOW: Final = {
    Language.PYTHON: _WHEEL.format("python") + ' ARGS="javascript python"',
    Language.JAVASCRIPT: _WHEEL.format("javascript"),
}
"""How a runtime is had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One runtime's files by the path that the runtime has them under; `module` is the reactor."""

    module: bytes
    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        """What a build with it depends on."""
        digest = sha256(self.module)
        for name in sorted(self.files):
            digest.update(f"{name}\0{len(self.files[name])}\0".encode() + self.files[name])
        return digest.hexdigest()


def find_runtime(language: Language, folder: Path | None) -> Runtime:
    """Return the runtime of a language, from `folder` where one is named.

    Raises:
        UnavailableError: It is not installed.
    """
    package = PACKAGES[language]
    home = _home(package, folder)
    reactor = None if home is None else home / f"{language}.wasm"
    if home is None or reactor is None or not reactor.is_file():
        raise UnavailableError(
            f"the runtime of {language} is not installed",
            hint=HOW[language],
        )
    files = {
        f"lib/{path.relative_to(home / 'lib').as_posix()}": path.read_bytes()
        for path in sorted((home / "lib").rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    return Runtime(module=reactor.read_bytes(), files=files)


def _home(package: str, folder: Path | None) -> Path | None:
    if folder is not None:
        return folder / package
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent
