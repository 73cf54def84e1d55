"""Asks the worker binary which engine it holds: for Hello messages, artifacts and receipts."""

import asyncio
import json
from datetime import timedelta
from typing import Final

from data_plane.sandbox.domain import EngineInfo
from data_plane.sandbox.messages import engine_from_json
from shared.errors import UnavailableError, WorkerCrashedError

ENGINE_TIMEOUT: Final = timedelta(seconds=10)


async def read_engine_info(worker_path: str) -> EngineInfo:
    """Return the engine of the binary at ``worker_path``, on this machine's CPU.

    Raises:
        UnavailableError: The binary is missing, does not run here, or does not answer in time.
        WorkerCrashedError: It answers something else.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            worker_path, "engine", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env={}
        )
    except OSError as error:
        raise UnavailableError(f"worker {worker_path} cannot be started: {error}") from error
    try:
        async with asyncio.timeout(ENGINE_TIMEOUT.total_seconds()):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise UnavailableError(f"worker {worker_path} does not name its engine") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return engine_from_json(json.loads(output))
    except ValueError as error:
        raise WorkerCrashedError(f"worker {worker_path} names no engine") from error
