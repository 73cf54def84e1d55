"""The engine's judgement of a module. Reads it; compiles and runs nothing."""

from agentfactory_engine import InvalidModuleError, validate_module

from shared.errors import ModuleInvalidError
from shared.manifest import MAX_MODULE_BYTES


def check_agent_module(module: bytes) -> None:
    """Return if the module is an agent's; see `ModuleCheck`.

    Raises:
        ModuleInvalidError: It is malformed, uses a feature that is off, imports what is not offered, or lacks
            `_start` or `memory`.
    """
    try:
        validate_module(module, max_bytes=MAX_MODULE_BYTES)
    except InvalidModuleError as error:
        raise ModuleInvalidError(str(error)) from error
