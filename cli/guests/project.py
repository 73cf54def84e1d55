"""An author's folder: which language it is in, and which of its files make the module."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from shared.errors import AgentBuildError, NotFoundError

MAX_FILES: Final = 2_000
MAX_BYTES: Final = 32 * 1024 * 1024
MAX_EXAMPLE_BYTES: Final = 64 * 1024
_NOT_SOURCE: Final = frozenset({"build", "dist", "tests", "node_modules", "__pycache__", "venv"})


class Language(StrEnum):
    """What agents can be written in with a runtime or compiler of ours."""

    PYTHON = "python"
    JAVASCRIPT = "javascript"
    C = "c"


MAIN_FILES: Final = {Language.PYTHON: "agent.py", Language.JAVASCRIPT: "agent.js", Language.C: "agent.c"}
SUFFIXES: Final = {
    Language.PYTHON: (".py",),
    Language.JAVASCRIPT: (".js", ".json"),
    Language.C: (".c", ".h"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """An author's folder that was found to be one."""

    folder: Path
    language: Language

    @property
    def main_file(self) -> str:
        """The file that holds `run`."""
        return MAIN_FILES[self.language]

    def sources(self) -> dict[str, bytes]:
        """Return the files that make the module, by their path within the folder, in their order.

        Raises:
            AgentBuildError: There are more files or bytes than an agent may have.
        """
        found: dict[str, bytes] = {}
        size = 0
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if hidden or _NOT_SOURCE.intersection(name.parts[:-1]) or path.suffix not in self._suffixes:
                continue
            if path.is_symlink() or not path.is_file():
                continue
            found[name.as_posix()] = path.read_bytes()
            size += len(found[name.as_posix()])
            if len(found) > MAX_FILES or size > MAX_BYTES:
                raise AgentBuildError(
                    f"{self.folder} holds more than {MAX_FILES} source files or {MAX_BYTES} bytes",
                    hint="keep what is not the agent in folders named tests, build or dist",
                )
        return found

    def example(self) -> bytes:
        """Return the input of the first of the agent's tests; an empty object where it has none to show."""
        for path in sorted((self.folder / "tests").glob("*.input.json")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_EXAMPLE_BYTES:
                return path.read_bytes()
        return b"{}"

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return SUFFIXES[self.language]


def find_project(folder: Path) -> Project:
    """Return the project in a folder.

    Raises:
        NotFoundError: There is no agent.toml, or no main file beside it.
        AgentBuildError: There are main files of two languages.
    """
    if not (folder / "agent.toml").is_file():
        raise NotFoundError(
            f"{folder} holds no agent.toml",
            hint="agentfactory new my-agent --lang javascript makes such a folder",
        )
    found = [language for language, name in MAIN_FILES.items() if (folder / name).is_file()]
    if not found:
        raise NotFoundError(
            f"{folder} holds none of {', '.join(MAIN_FILES.values())}",
            hint="a module of another language is packed with: agentfactory template build",
        )
    if len(found) > 1:
        raise AgentBuildError(
            f"{folder} holds {' and '.join(MAIN_FILES[each] for each in found)}: one agent has one language"
        )
    return Project(folder=folder, language=found[0])
