"""Reads WebAssembly modules, evaluates Rego and finds the sandbox worker. Compiles and runs nothing."""

from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from agentfactory_engine._native import (
    InvalidModuleError,
    ModuleExport,
    ModuleImport,
    ModuleInfo,
    ModuleMemory,
    Policy,
    PolicyError,
    PolicyUse,
    guarded_builtins,
    inspect_module,
    inspect_policy,
    validate_module,
)

__all__ = [
    "InvalidModuleError",
    "ModuleExport",
    "ModuleImport",
    "ModuleInfo",
    "ModuleMemory",
    "Policy",
    "PolicyError",
    "PolicyUse",
    "guarded_builtins",
    "inspect_module",
    "inspect_policy",
    "validate_module",
    "worker_path",
]

_DISTRIBUTION = "agentfactory-engine"
_WORKER = "agentfactory-worker"


@cache
def worker_path() -> str:
    """Return the absolute path of the worker binary that came with this very installation.

    Raises:
        FileNotFoundError: The installation is damaged: it lists no worker, or the file is gone.
    """
    try:
        files = distribution(_DISTRIBUTION).files or []
    except PackageNotFoundError as error:
        raise FileNotFoundError(f"{_DISTRIBUTION} is not installed") from error
    for file in files:
        if file.name == _WORKER:
            path = Path(str(file.locate())).resolve()
            if path.is_file():
                return str(path)
    raise FileNotFoundError(f"{_DISTRIBUTION} is installed without its {_WORKER}; install it again")
