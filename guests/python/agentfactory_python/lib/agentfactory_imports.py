"""Looks at what an agent imports before any of it runs, and explains what went wrong when it did."""

import ast
import opcode
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, ModuleType

NO_NETWORK = (
    "the sandbox has no sockets: name the destination under http in [capabilities] and call host.http.fetch"
)
NO_PROCESSES = "the sandbox has no processes and no threads: an agent is one run from input to result"
REFUSED = {
    **dict.fromkeys(
        (
            "aiohttp", "ftplib", "http.client", "http.server", "httpx", "imaplib", "poplib", "requests",
            "select", "selectors", "smtplib", "socket", "socketserver", "ssl", "urllib.request", "urllib3",
            "xmlrpc",
        ),
        NO_NETWORK,
    ),
    **dict.fromkeys(
        ("_thread", "concurrent.futures", "multiprocessing", "subprocess", "threading"), NO_PROCESSES
    ),
    "ctypes": "the sandbox has no native code beside the runtime's own",
    "sqlite3": "the runtime has no sqlite3: keep values with host.kv",
}  # fmt: skip


FOR_PEOPLE = {
    "_pyrepl", "argparse", "doctest", "getopt", "importlib.metadata", "importlib.readers", "pdb", "pickle",
    "pydoc", "readline", "rlcompleter", "shutil", "sitecustomize", "tracemalloc", "unittest", "usercustomize",
}  # fmt: skip
"""What the standard library imports within functions for terminals and files. Agents may import them."""


@dataclass(frozen=True)
class Finding:
    """What the imports say: a refusal, or what has to be loaded before and after the agent itself."""

    standard: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    refusal: str = ""
    hint: str = ""


def look(own: Mapping[str, str], files: Mapping[str, str]) -> Finding:
    """Return what the imports of all files say; only the author's own are refused for what they import."""
    standard: dict[str, None] = {}
    later: dict[str, None] = {}
    for file in sorted(files):
        try:
            tree = ast.parse(files[file], file)
        except (SyntaxError, ValueError) as error:
            if file in own:
                line = getattr(error, "lineno", None) or 1
                text = (getattr(error, "text", None) or "").strip()
                message = f"{file}:{line}: {type(error).__name__}: {getattr(error, 'msg', error)}"
                return Finding(refusal=f"{message}: {text}" if text else message)
            continue
        for name, line in _imports(tree):
            if file in own and (hint := _hint(name)):
                return Finding(refusal=f"{file}:{line}: import {name}: an agent cannot use it", hint=hint)
            kind = standard if name.partition(".")[0] in sys.stdlib_module_names else later
            if file in own or kind is standard:
                kind.setdefault(name)
    return Finding(standard=tuple(n for n in standard if not _hint(n)), later=tuple(later))


def _hint(name: str) -> str:
    return next(
        (hint for refused, hint in REFUSED.items() if name == refused or name.startswith(f"{refused}.")), ""
    )


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno
            for alias in node.names:
                if f"{node.module}.{alias.name}" in REFUSED:
                    yield f"{node.module}.{alias.name}", node.lineno


def within_functions(modules: Mapping[str, ModuleType]) -> tuple[str, ...]:
    """Return what loaded modules of the standard library import when they are called: `heapq`, for one."""
    found: dict[str, None] = {}
    for name, module in list(modules.items()):
        spec = getattr(module, "__spec__", None)  # its name is another than `name` for some, like os.path
        get_code = getattr(getattr(spec, "loader", None), "get_code", None)
        if spec is None or get_code is None or name.partition(".")[0] not in sys.stdlib_module_names:
            continue
        code = get_code(spec.name)
        for inner in code.co_consts if code is not None else ():
            if isinstance(inner, CodeType):
                found |= dict.fromkeys(_imported(inner))
    return tuple(each for each in found if each not in modules and _is_wanted(each))


def _is_wanted(name: str) -> bool:
    parts = name.split(".")
    return not _hint(name) and FOR_PEOPLE.isdisjoint(".".join(parts[:n]) for n in range(1, len(parts) + 1))


def _imported(code: CodeType) -> Iterator[str]:
    """Yield the names of all imports in a function's byte code, and in functions within it."""
    extended = 0
    for operation, argument in zip(code.co_code[::2], code.co_code[1::2], strict=True):
        number = extended | argument
        extended = number << 8 if operation == opcode.EXTENDED_ARG else 0
        if operation == opcode.opmap["IMPORT_NAME"] and code.co_names[number]:
            yield code.co_names[number]
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _imported(inner)


def explain(error: BaseException, where: str) -> tuple[str, str]:
    """Return message and hint for what was raised while the agent was loaded."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        if hint := _hint(error.name):
            return f"{where}import {error.name}: an agent cannot use it", hint
        if top in sys.stdlib_module_names:
            return (
                f"{where}import {error.name}: the runtime does not have it",
                "docs/guests.md lists what it has",
            )
        return (
            f"{where}import {error.name}: there is no such module",
            "a dependency belongs into requirements.txt, with its hash",
        )
    if isinstance(error, SyntaxError):
        return f"{where}SyntaxError: {error.msg}", ""
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{where}{type(error).__name__} while the agent is loaded: {text}", ""
