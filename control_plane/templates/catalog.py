"""Finds template versions and their contents: for people, for agents, for nodes. Changes nothing."""

from control_plane.database.ports import Database
from control_plane.paging import BAD_TOKEN, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, decode_token, encode_token
from control_plane.templates.domain import TemplatePage, TemplateRef, TemplateState, TemplateVersion
from control_plane.templates.ports import TemplateStore
from shared.digests import Digest
from shared.errors import InvalidInputError, NotFoundError, TemplateRevokedError
from shared.ids import TEMPLATE_VERSION, TemplateVersionId, TenantId, parse_id


class TemplateCatalog:
    """Reads; also the `TemplateContents` that nodes fetch from and the `Templates` of agents."""

    def __init__(self, *, database: Database, store: TemplateStore) -> None:
        self._database = database
        self._store = store

    async def get(self, tenant_id: TenantId, ref: TemplateRef) -> TemplateVersion:
        """Return one version.

        Raises:
            NotFoundError: The tenant has no such version.
        """
        async with self._database.transaction() as tx:
            found = await self._store.find(tx, tenant_id, ref)
        if found is None:
            raise NotFoundError(f"there is no template {ref}")
        return found

    async def list(self, tenant_id: TenantId, *, name: str, page_size: int, page_token: str) -> TemplatePage:
        """Return a page, newest first, without envelopes.

        Raises:
            InvalidInputError: The page token is not one of ours.
        """
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        before = _id_of(page_token) if page_token else None
        async with self._database.transaction() as tx:
            found = await self._store.list(tx, tenant_id, name=name, before=before, limit=size + 1)
        more = len(found) > size
        return TemplatePage(
            versions=tuple(found[:size]),
            next_page_token=encode_token(found[size - 1].template_version_id) if more else "",
        )

    async def envelope(self, tenant_id: TenantId, template_digest: Digest) -> bytes:
        """Return a version's DSSE envelope, for a node.

        Raises:
            NotFoundError: The tenant has no such version.
            TemplateRevokedError: It is revoked.
        """
        version = await self.get(tenant_id, TemplateRef(digest=template_digest))
        if version.state is TemplateState.REVOKED:
            raise TemplateRevokedError(f"template {version.name} {version.version} is revoked")
        return version.envelope

    async def module(self, module_digest: Digest, *, offset_bytes: int, max_bytes: int) -> bytes:
        """Return a piece of a module's exact bytes, for a node; empty behind its end.

        Raises:
            NotFoundError: There is no such module.
        """
        async with self._database.transaction() as tx:
            module = await self._store.read_module(
                tx, module_digest, offset_bytes=offset_bytes, max_bytes=max_bytes
            )
        if module is None:
            raise NotFoundError(f"there is no module {module_digest}")
        return module


def _id_of(token: str) -> TemplateVersionId:
    try:
        return parse_id(TEMPLATE_VERSION, decode_token(token))
    except InvalidInputError as error:
        raise InvalidInputError(BAD_TOKEN) from error
