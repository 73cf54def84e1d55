"""Loads the agent at build time and runs it afterwards. The runtime imports it before its memory is saved.

What is imported here is in each agent's start. Everything that a run may need has to be: a run has no files.
"""

import _strptime  # noqa: F401 - from C code, as the codecs: nothing shows that they are imported later
import contextlib
import encodings.ascii
import encodings.cp1252
import encodings.latin_1
import encodings.utf_8_sig
import encodings.utf_16
import encodings.utf_16_be
import encodings.utf_16_le  # noqa: F401
import gc
import importlib.util
import inspect
import io
import json
import linecache
import logging  # noqa: F401 - reads the clock when it is imported
import os
import random
import sys
import traceback
import zipimport
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from types import CodeType, ModuleType
from typing import Any

import _agentfactory
import agentfactory_imports
import agentfactory_schemas
from agentfactory_guest import Host, call

BUNDLE = "/agent/bundle.json"
EXIT_FAILED = 1
_READERS = {__name__, "os", "collections.abc", "_collections_abc"}
"""Modules between whoever reads the environment and the environment."""
_loaded: set[str] = set()
"""Files of the agent and its dependencies that were imported."""


_tried: set[str] = set()
"""Imported because some function might, or found to be missing."""


class _RefusedError(Exception):
    """The agent cannot be built."""


def _refuse(message: str, hint: str = "") -> None:
    call("build.refuse", {"message": message, "hint": hint})
    raise _RefusedError(message)


class _Files:
    """Imports the agent's own files and its dependencies out of memory. Names of files are the author's."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = dict(files)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        del path, target
        base = name.replace(".", "/")
        for file, is_package in ((f"{base}/__init__.py", True), (f"{base}.py", False)):
            if file in self._files:
                spec = importlib.util.spec_from_loader(name, self, origin=file, is_package=is_package)
                if spec is not None:
                    spec.has_location = True
                return spec
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        del spec

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        file = module.__spec__.origin
        assert file is not None
        source = self._files[file]
        # A traceback at run time shows the author's lines: there is no file to read them from then.
        _loaded.add(file)
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - what an importer does

    def get_code(self, name: str) -> CodeType | None:
        del name
        return None

    def forget(self) -> None:
        """Keep nothing but what was imported."""
        self._files.clear()


class _Environment(dict[str, str]):
    """Stands for os.environ's data while the agent is loaded: what it read would be in the template."""

    def __getitem__(self, key: Any) -> str:
        _refuse_reading(key)
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        _refuse_reading(key)
        return False

    def __iter__(self) -> Iterator[str]:
        _refuse_reading("")
        return iter(())


def _refuse_reading(key: object) -> None:
    """The standard library may look for its own settings, and finds none."""
    file, line = _author_line()
    if file:
        name = key.decode() if isinstance(key, bytes) else str(key)
        _refuse(
            f"{file}:{line}: reads the environment{' variable ' + name if name else ''} while it is loaded: "
            "what it read would be in the template",
            "read it in run(); parameters and secrets come with host",
        )


def _author_line() -> tuple[str, int]:
    """Return where the agent's code called from, if the nearest code outside `os` is the agent's."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in _READERS:
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename not in _loaded:
        return "", 0
    return frame.f_code.co_filename, frame.f_lineno


def _where(error: BaseException, own: Mapping[str, str]) -> str:
    """Return FILE:LINE of the innermost frame of the author's own files."""
    if isinstance(error, SyntaxError) and error.filename in own:
        return f"{error.filename}:{error.lineno}: "
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    return f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""


def _import_if_there(names: tuple[str, ...]) -> None:
    """Load what is imported within functions too; of what is missing the agent's own import says the line."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _load_zones() -> None:
    """Have the time zones where they can be asked for: 0.3 MB that only agents with `zoneinfo` have."""
    if "zoneinfo" in sys.modules and "agentfactory_zones" not in sys.modules:
        import agentfactory_zones  # noqa: PLC0415

        agentfactory_zones.install()


def _load() -> tuple[Callable[..., Any], Any]:
    with open(BUNDLE, encoding="utf-8") as file:  # noqa: PTH123 - pathlib would be in each agent's memory
        bundle = json.load(file)
    own, files = bundle["own"], bundle["own"] | bundle["dependencies"]
    finding = agentfactory_imports.look(own, files)
    if finding.refusal:
        _refuse(finding.refusal, finding.hint)
    _import_if_there(finding.standard)
    _load_zones()
    importer = _Files(files)
    sys.meta_path.insert(0, importer)  # type: ignore[arg-type]
    seeded = random.getstate()
    # All ways to os.environ end there: this Python is ours and of one version.
    data = os.environ._data  # type: ignore[attr-defined]  # noqa: SLF001
    os.environ._data = _Environment()  # type: ignore[attr-defined]  # noqa: SLF001
    call("build.phase", {"phase": "agent"})
    try:
        agent = importlib.import_module("agent")
        _import_if_there(finding.later)
    except _RefusedError:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever the author's code raises, SystemExit too
        _refuse(*agentfactory_imports.explain(error, _where(error, own)))
    call("build.phase", {"phase": "done"})
    while more := [each for each in agentfactory_imports.within_functions(sys.modules) if each not in _tried]:
        _tried.update(more)
        _import_if_there(tuple(more))
    _load_zones()
    os.environ._data = data  # type: ignore[attr-defined]  # noqa: SLF001
    if random.getstate() != seeded:
        _refuse(
            "the agent draws random numbers while it is loaded: every run would have the same",
            "move it into run() or a function that run() calls",
        )
    importer.forget()
    function = getattr(agent, "run", None)
    if not callable(function):
        _refuse("agent.py has no function run", "def run(input: dict, host: Host) -> dict: …")
    assert callable(function)
    try:
        schemas, make_input = agentfactory_schemas.of(function)
    except (TypeError, NameError) as error:
        _refuse(f"the annotations of run cannot be read: {type(error).__name__}: {error}")
        raise
    call("build.schemas", schemas)
    return function, make_input


def _read_all() -> bytes:
    with io.FileIO(0, "r", closefd=False) as file:
        return file.readall() or b""


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def run() -> int:
    """Be one execution: input on stdin, result on stdout, everything that is printed in the log."""
    random.seed()
    parameters = _agentfactory.environment("AGENTFACTORY_PARAMETERS")
    if parameters is not None:
        os.environ["AGENTFACTORY_PARAMETERS"] = parameters
    try:
        raw = _read_all()
        given = _make_input(json.loads(raw)) if raw.strip() else None
        answer = _function(given, _HOST)
        if inspect.iscoroutine(answer):
            import asyncio  # noqa: PLC0415 - 2 MiB that only agents with coroutines have

            answer = asyncio.run(answer)
        _write_all(
            json.dumps(answer, default=agentfactory_schemas.plain, separators=(",", ":")).encode() + b"\n"
        )
    except BaseException as error:  # noqa: BLE001 - whatever the author's code raises, SystemExit too
        _tell(error)
        return EXIT_FAILED
    finally:
        sys.stderr.flush()
    return 0


def _tell(error: BaseException) -> None:
    """Print the traceback as the author knows it: without the frames of this file."""
    while (
        error.__traceback__ is not None
        and "agentfactory_start" in error.__traceback__.tb_frame.f_code.co_filename
    ):
        error.__traceback__ = error.__traceback__.tb_next
    traceback.print_exception(error)


_HOST = Host()
sys.stdout = sys.stderr
# What this Python was configured with, which nobody has here. Without it the first `import zoneinfo` fails.
_configured = ModuleType("_sysconfigdata__wasi_wasm32-wasi")
_configured.build_time_vars = {}  # type: ignore[attr-defined]
sys.modules[_configured.__name__] = _configured
try:
    _function, _make_input = _load()
except _RefusedError:
    sys.stderr.flush()
    os._exit(EXIT_FAILED)
if "asyncio" in sys.modules:
    import agentfactory_loop

    agentfactory_loop.install()
linecache.checkcache = lambda *_: None  # type: ignore[assignment]  # there are no files to look at
# Nor files to import from: what is missing now is missing by its name, not as a file.
sys.meta_path[:] = [each for each in sys.meta_path if each is not PathFinder]
sys.path_importer_cache.clear()
zipimport._zip_directory_cache.clear()  # type: ignore[attr-defined]  # noqa: SLF001 - 300 kB
gc.collect()
gc.freeze()
