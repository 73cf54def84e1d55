# ruff: noqa: PYI021 - native code has no other place for its contract

from collections.abc import Sequence
from typing import Self

class InvalidModuleError(ValueError):
    """The bytes are no WebAssembly module, or no agent; the message says why."""

class PolicyError(ValueError):
    """A policy cannot be read or evaluated, or has no answer; never to be taken for an answer."""

class ModuleImport:
    """One import; ``kind`` is its type as text, such as ``func (i32, i32) -> (i32)``."""

    @property
    def module(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...

class ModuleExport:
    """One export and its type as text."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...

class ModuleMemory:
    """Declared size of a linear memory; no maximum means 4 GiB."""

    @property
    def minimum_bytes(self) -> int: ...
    @property
    def maximum_bytes(self) -> int | None: ...

class ModuleInfo:
    """What a valid module says about itself. Sizes in bytes, the rest are counts."""

    @property
    def module_bytes(self) -> int: ...
    @property
    def code_bytes(self) -> int: ...
    @property
    def data_bytes(self) -> int: ...
    @property
    def imports(self) -> list[ModuleImport]: ...
    @property
    def exports(self) -> list[ModuleExport]: ...
    @property
    def memories(self) -> list[ModuleMemory]: ...
    @property
    def functions(self) -> int: ...
    @property
    def tables(self) -> int: ...
    @property
    def globals(self) -> int: ...
    @property
    def types(self) -> int: ...

def inspect_module(module: bytes, *, max_bytes: int = ...) -> ModuleInfo:
    """Validate the bytes as WebAssembly and describe them; imports and exports are not judged.

    ``max_bytes`` is 64 MiB unless named. The interpreter lock is released meanwhile.

    Raises:
        InvalidModuleError: Too large, malformed, or uses threads, 64-bit memories, exceptions or another
            feature that agents do not have.
    """

def validate_module(module: bytes, *, max_bytes: int = ...) -> ModuleInfo:
    """As ``inspect_module``, and the module is an agent.

    It imports functions of ``wasi_snapshot_preview1`` and ``agentfactory`` only, and exports ``_start`` and
    ``memory``.

    Raises:
        InvalidModuleError: As ``inspect_module``, or one of these rules is broken; the message names it.
    """

class Policy:
    """Modules of Rego v1 with their data. Safe to share between threads: evaluations have no common state."""

    def __new__(
        cls, files: Sequence[tuple[str, str]], data_json: str = "{}", *, timeout_ms: int = ...
    ) -> Self:
        """Parse and prepare the modules, pairs of path and Rego text.

        An evaluation may take ``timeout_ms``, 100 unless named.

        Raises:
            PolicyError: Too large, not Rego v1, or the data is not a JSON object.
        """

    def evaluate(self, rule: str, input_json: str) -> str:
        """Return the value of ``rule`` (``data.<package>.<rule>``) for this input, as JSON.

        Raises:
            PolicyError: There is no such rule, it is undefined for this input, a builtin failed, the input is
                not JSON, or the evaluation took too long. Fail closed: treat it as a denial.
        """

    def query(self, query: str, input_json: str | None) -> str:
        """Return a JSON array of the bindings of each solution of a query; None: `input` is undefined.

        Raises:
            PolicyError: As ``evaluate``.
        """

class PolicyUse:
    """One thing that a module uses, and where."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def arguments(self) -> int: ...
    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...

def inspect_policy(path: str, source: str) -> list[PolicyUse]:
    """Parse one module and return what it uses, in no order; judges nothing.

    Kinds: ``package``, ``import``, ``function`` (a rule with arguments), ``call``, ``with`` and ``stand-in``
    (what ``with`` puts there), named by their path; ``membership`` (with a key), ``operator`` (only ``/``),
    ``number``, and ``head`` (a reference that goes on behind a variable), named by their text.

    Raises:
        PolicyError: Not Rego as the embedded engine reads it; the message holds ``path:line:column``.
    """

def guarded_builtins() -> list[tuple[str, int]]:
    """Names and arities of the built-ins that refuse arguments for which OPA answers otherwise."""
