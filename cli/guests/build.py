"""Makes a module of an author's folder: the same bytes for the same files, at once when nothing changed."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from cli.guests import wasm
from cli.guests.project import Language, Project
from cli.guests.runtimes import Runtime, find_runtime
from shared.errors import AgentBuildError, ModuleInvalidError, UnavailableError
from shared.inheritance import Parent
from shared.limits import grant_limits
from shared.manifest import MAX_MODULE_BYTES
from shared.package_files import build_package_of, read_author
from shared.packages import UnsignedPackage

FORMAT: Final = "agentfactory build 2"
"""Raise when the same files become another module."""
COMPILE_TIMEOUT_S: Final = 300
C_FLAGS: Final = ("--target=wasm32-wasi", "-std=c11", "-O2", "-s", "-Wall", "-Wl,-z,stack-size=131072")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A module and what its annotations say of input and output."""

    module: bytes
    schemas: Mapping[str, Any]
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where builds keep things, and where runtimes come from."""

    cache: Path
    runtimes: Path | None = None
    progress: Progress = lambda _: None

    def build(self, project: Project) -> Built:
        """Return the module of a folder.

        Raises:
            AgentBuildError: It cannot be made; says what is wrong, and in which line.
            ModuleInvalidError: What was made is no agent: it imports what no sandbox offers.
            UnavailableError: The runtime or compiler of its language is not here.
        """
        sources = project.sources()
        if project.language is Language.C:
            runtime = None
            key = _key(FORMAT, "c", version("ziglang") if _has_zig() else "", sources)
        else:
            runtime = find_runtime(project.language, self.runtimes)
            sources |= self._dependencies(project)
            key = _key(FORMAT, project.language, runtime.digest, sources, {"example": project.example()})
        kept = self.cache / "modules" / key
        if (kept / "schemas.json").is_file():
            schemas = json.loads((kept / "schemas.json").read_bytes())
            return Built(module=(kept / "module.wasm").read_bytes(), schemas=schemas, is_new=False)
        built = self._make(project, runtime, sources)
        _check(built.module)
        _keep(kept, built)
        return built

    def _dependencies(self, project: Project) -> dict[str, bytes]:
        if project.language is not Language.PYTHON:
            return {}
        from cli.guests.requirements import dependencies

        return dependencies(project.folder, self.cache, self.progress)

    def _make(self, project: Project, runtime: Runtime | None, sources: Mapping[str, bytes]) -> Built:
        if runtime is None:
            self.progress("compiling")
            return Built(module=_compile_c(project, sources), schemas={}, is_new=True)
        if importlib.util.find_spec("wasmtime") is None:
            raise UnavailableError("wasmtime is not installed", hint="pip install 'agentfactory[replay]'")
        from cli.guests.start import Start

        files = start_files(project, runtime, sources)
        self.progress("starting the runtime with the agent")
        start = Start(project.language, runtime.module, files, self.cache / "starts")
        started = start.save(project.example())
        return Built(module=started.module, schemas=started.schemas, is_new=True)


def start_files(project: Project, runtime: Runtime, sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what a start sees: the runtime's files and the agent's."""
    if project.language is Language.PYTHON:
        from cli.guests.python_bundle import bundle

        return bundle(runtime.files, sources)
    return runtime.files | {f"agent/{name}": data for name, data in sources.items()}


def package_of(project: Project, built: Built, parent: Parent | None) -> UnsignedPackage:
    """Return the unsigned package: agent.toml, the module, and schemas that agent.toml does not name itself.

    Raises:
        ManifestInvalidError, NotFoundError: As `build_package`.
    """
    author = read_author(project.folder)
    with tempfile.TemporaryDirectory(prefix="agentfactory-build-") as name:
        staged = Path(name)
        changes: dict[str, Any] = {}
        for which in ("parameters", "input", "output"):
            chosen = getattr(author, f"{which}_schema")
            if chosen is not None:
                (staged / chosen).write_bytes((project.folder / chosen).read_bytes())
            elif which in built.schemas and author.extends is None:
                changes[f"{which}_schema"] = f"{which}.schema.json"
                (staged / f"{which}.schema.json").write_text(json.dumps(built.schemas[which]))
        author = replace(author, module=author.module or f"{author.name}.wasm", **changes)
        package = build_package_of(author, built.module, staged, parent)
    _require_room(package, built.module)
    return package


def _require_room(package: UnsignedPackage, module: bytes) -> None:
    needed = wasm.minimum_memory_bytes(module)
    granted = grant_limits(package.manifest.limits).memory_bytes
    if needed > granted:
        raise AgentBuildError(
            f"the agent has {needed} bytes of memory before it runs, and its manifest grants {granted}",
            hint=f"set memory_bytes in [limits] of agent.toml to {2 * needed} or so",
        )


def _key(*parts: str | Mapping[str, bytes]) -> str:
    digest = sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode() + b"\0")
            continue
        for name in sorted(part):
            digest.update(f"{name}\0{len(part[name])}\0".encode() + part[name])
    return digest.hexdigest()


def _check(module: bytes) -> None:
    import agentfactory_engine

    try:
        agentfactory_engine.validate_module(module, max_bytes=MAX_MODULE_BYTES)
    except agentfactory_engine.InvalidModuleError as error:
        raise ModuleInvalidError(str(error)) from error


def _keep(kept: Path, built: Built) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".new-") as folder:
        made = Path(folder) / "made"
        made.mkdir()
        (made / "module.wasm").write_bytes(built.module)
        (made / "schemas.json").write_text(json.dumps(built.schemas))
        try:
            os.replace(made, kept)  # noqa: PTH105 - the same as Path.replace
        except OSError:
            # Another build of the same files was faster; what it kept is the same.
            if not (kept / "schemas.json").is_file():
                raise


def _has_zig() -> bool:
    return importlib.util.find_spec("ziglang") is not None


def _compile_c(project: Project, sources: Mapping[str, bytes]) -> bytes:
    if not _has_zig():
        raise UnavailableError(
            "there is no C compiler for WASI", hint="pip install ziglang, or use your own and: template build"
        )
    with tempfile.TemporaryDirectory(prefix="agentfactory-build-") as name:
        folder = Path(name)
        for path, data in sources.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        (folder / "agentfactory.h").write_bytes((Path(__file__).parent / "agentfactory.h").read_bytes())
        files = sorted(path for path in sources if path.endswith(".c"))
        command = [sys.executable, "-m", "ziglang", "cc", *C_FLAGS, "-I.", "-o", "agent.wasm", *files]
        try:
            done = subprocess.run(  # noqa: S603 - a fixed compiler, files of the author's as arguments
                command, cwd=folder, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise AgentBuildError(
                f"{project.main_file} does not compile within {COMPILE_TIMEOUT_S} s"
            ) from error
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if ": error:" in line] or [done.stderr[-300:]]
            raise AgentBuildError(errors[0].strip())
        return (folder / "agent.wasm").read_bytes()
