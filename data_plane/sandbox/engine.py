"""Asks the worker binary which engine it holds, and which layers of the jail hold on this machine."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from data_plane.sandbox.domain import EngineInfo, Layer, LayerState
from data_plane.sandbox.messages import engines_from_json, layers_from_json
from shared.errors import UnavailableError, WorkerCrashedError
from shared.manifest import Profile

ENGINE_TIMEOUT: Final = timedelta(seconds=10)


async def read_engines(worker_path: str) -> Mapping[Profile, EngineInfo]:
    """Return the engine of the binary at ``worker_path`` under each profile, on this machine's CPU.

    Raises:
        UnavailableError: The binary is missing, does not run here, or does not answer in time.
        WorkerCrashedError: It answers something else.
    """
    return engines_from_json(await _ask(worker_path, "engines"))


async def read_layers(worker_path: str) -> tuple[LayerState, ...]:
    """Return what holds around a worker here: one is started, enters the jail as any other, and looks.

    Raises:
        UnavailableError: The binary is missing, does not run here, or does not answer in time.
        WorkerCrashedError: It answers something else.
    """
    return layers_from_json(await _ask(worker_path, "doctor"))


def check_layers(layers: Sequence[LayerState], demanded: Iterable[Layer]) -> None:
    """Look whether every demanded layer holds.

    Raises:
        UnavailableError: One does not; the message names each and why.
    """
    states = {state.layer: state for state in layers}
    missing = [
        f"{layer} ({states[layer].detail if layer in states else 'unknown to this worker'})"
        for layer in demanded
        if layer not in states or not states[layer].active
    ]
    if missing:
        raise UnavailableError(
            f"the sandbox lacks what is demanded of it: {', '.join(missing)}",
            hint="let the kernel or container give it (docs/security/sandbox.md), or demand less"
            " with AF_NODE_SANDBOX_REQUIRE",
        )


async def _ask(worker_path: str, question: str) -> Any:
    try:
        process = await asyncio.create_subprocess_exec(
            worker_path, question, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env={}
        )
    except OSError as error:
        raise UnavailableError(f"worker {worker_path} cannot be started: {error}") from error
    try:
        async with asyncio.timeout(ENGINE_TIMEOUT.total_seconds()):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise UnavailableError(f"worker {worker_path} does not answer {question!r}") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return json.loads(output)
    except ValueError as error:
        raise WorkerCrashedError(f"worker {worker_path} does not answer {question!r}") from error
