"""Template versions from memory: for making agents again and again. Stale for a moment at most."""

from collections.abc import Sequence
from typing import Final

from control_plane.templates.catalog import TemplateCatalog
from control_plane.templates.domain import TemplateRef, TemplateVersion
from shared.cache import Cache, CacheStats
from shared.ids import TenantId

MAX_KNOWN_TEMPLATES: Final = 1024
MAX_KNOWN_TEMPLATE_BYTES: Final = 64 * 1024 * 1024
"""Of manifests and envelopes together."""


class CachedTemplates:
    """Implements the `Templates` of agents. `changed` is for NOTIFY.

    A version that was closed a moment ago may still make an agent: nothing of it runs, every accept looks.
    """

    def __init__(
        self, *, catalog: TemplateCatalog, cache: Cache[tuple[TenantId, TemplateRef], TemplateVersion]
    ) -> None:
        self._catalog = catalog
        self._cache = cache

    async def get(self, tenant_id: TenantId, ref: TemplateRef) -> TemplateVersion:
        """See `Templates.get`. What moves, a channel, is never remembered."""
        if ref.channel:
            return await self._catalog.get(tenant_id, ref)
        return await self._cache.get_or_load((tenant_id, ref), lambda: self._catalog.get(tenant_id, ref))

    def changed(self, _payloads: Sequence[str] = ()) -> None:
        """Forget everything: a template changed, or an announcement may have been missed."""
        self._cache.forget_all()

    def stats(self) -> CacheStats:
        """Return what the memory does."""
        return self._cache.stats()


def weigh(version: TemplateVersion) -> int:
    """Return what a version takes in memory, near enough."""
    return len(version.manifest) + len(version.envelope) + 1024
