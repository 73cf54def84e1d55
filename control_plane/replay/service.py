"""Hands out what an execution was made of, in pieces. Changes nothing and judges nothing."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Final

from control_plane.replay.domain import BODY_PARTS, Part, PartKind
from control_plane.replay.ports import Bodies, IngredientStore, Modules
from shared.errors import NotFoundError
from shared.ids import ExecutionId, TenantId

CHUNK_BYTES: Final = 256 * 1024


class ReplayService:
    """The use case of whoever runs an execution again."""

    def __init__(self, *, store: IngredientStore, bodies: Bodies, modules: Modules) -> None:
        self._store = store
        self._bodies = bodies
        self._modules = modules

    async def material(
        self, tenant_id: TenantId, execution_id: ExecutionId
    ) -> AsyncGenerator[Part | bytes, None]:
        """Yield each part's header, then its bytes in pieces. A body that is not there is left out.

        Raises:
            NotFoundError: The tenant has no such execution.
        """
        found = await self._store.find(tenant_id, execution_id)
        yield Part(kind=PartKind.MODULE, size_bytes=found.module_bytes)
        for offset in range(0, found.module_bytes, CHUNK_BYTES):
            yield await self._modules.module(found.module_digest, offset_bytes=offset, max_bytes=CHUNK_BYTES)
        yield Part(kind=PartKind.PARAMETERS, size_bytes=len(found.parameters))
        yield found.parameters
        for part in await self._body_parts(tenant_id, execution_id):
            yield part
            assert part.body_id is not None
            for offset in range(0, part.size_bytes, CHUNK_BYTES):
                yield await self._bodies.read_body(
                    tenant_id, part.body_id, offset_bytes=offset, max_bytes=CHUNK_BYTES
                )

    async def _body_parts(self, tenant_id: TenantId, execution_id: ExecutionId) -> list[Part]:
        parts = []
        for kind, body_kind in BODY_PARTS.items():
            with suppress(NotFoundError):
                body = await self._bodies.body_of(tenant_id, execution_id, body_kind)
                parts.append(
                    Part(kind=kind, size_bytes=body.size_bytes, salt=body.salt, body_id=body.body_id)
                )
        return parts
