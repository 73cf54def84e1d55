"""Looks at what an agent imports before any of it runs, and explains what went wrong when it did."""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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
