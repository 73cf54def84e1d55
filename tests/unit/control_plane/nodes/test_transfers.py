"""How much of a replica's memory a node may take by what it fetches."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from control_plane.executions.domain import AttemptRef
from control_plane.nodes import transfers as transfers_module
from control_plane.nodes.transfers import NodeTransfers
from control_plane.transfers import SLOTS_PER_IDENTITY
from shared.compiled import Target
from shared.digests import sha256_digest
from shared.errors import ResourceExhaustedError
from shared.ids import ExecutionId, NodeId
from shared.manifest import Profile
from tests.fakes.answers import OpenGate

BOUND_S = 30.0
TEMPLATE = sha256_digest(b"template")
ATTEMPT = AttemptRef(execution_id=ExecutionId("exe_1"), attempt_number=1, fencing_token=1)
TARGET = Target(
    profile=Profile.DEFAULT,
    engine_name="wasmer",
    engine_version="7",
    config_digest=sha256_digest(b"config"),
    cpu_features="sse2",
)


@dataclass(frozen=True, kw_only=True)
class Found:
    template_digest: str = TEMPLATE
    module_digest: str = sha256_digest(b"module")
    tenant_id: str = "default"
    envelope: bytes = b"statement"


class Contents:
    """Leases that live, and an artifact without an end."""

    async def live_attempt(self, node_id: Any, attempt: Any) -> Found:
        return Found()

    async def find(self, module_digest: Any, target: Any) -> Found:
        return Found()

    async def envelope(self, tenant_id: Any, digest: Any) -> bytes:
        return b"envelope"

    async def held(self, compiled: Any, digests: Any) -> tuple[int, ...]:
        return ()

    async def pieces(self, compiled: Any, *, without: Any) -> Any:
        while True:
            yield b"piece"


async def fetching(transfers: NodeTransfers, node: str) -> Any:
    return (await transfers.compiled(NodeId(node), ATTEMPT, TEMPLATE, TARGET)).pieces


async def test_a_node_that_fetches_and_reads_nothing_takes_no_more_than_its_share(monkeypatch):
    """Each stream of an artifact keeps pieces in memory, and one live lease opens any number of streams."""
    monkeypatch.setattr(transfers_module, "DOWNLOAD_WAIT", transfers_module.DOWNLOAD_WAIT / 1000)
    contents: Any = Contents()
    nothing: Any = None
    transfers = NodeTransfers(
        leases=contents,
        executions=nothing,
        templates=contents,
        owners=nothing,
        compiled=contents,
        clock=nothing,
        random=nothing,
        gate=OpenGate(),
    )
    held = [await fetching(transfers, "nod_one") for _ in range(SLOTS_PER_IDENTITY)]
    async with asyncio.timeout(BOUND_S):
        for parts in held:
            await anext(parts)
        with pytest.raises(ResourceExhaustedError):
            await anext(await fetching(transfers, "nod_one"))
        other = await fetching(transfers, "nod_two")
        await anext(other)
        # A stream that is left gives its share back.
        await held.pop().aclose()
        again = await fetching(transfers, "nod_one")
        await anext(again)
        for parts in (*held, other, again):
            await parts.aclose()
