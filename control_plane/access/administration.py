"""Use cases of administrators: bindings, tenants, explanations, the first administrator. Lets nobody in.

A change and its audit entry share a transaction. The gatekeeper has checked the role already; here stands
what a role alone does not say: in which tenant.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from control_plane.access.domain import (
    DEFAULT_TENANT,
    OF_NODES,
    Bound,
    Explanation,
    Role,
    RoleBinding,
    Rule,
    Tenant,
    TenantChange,
    check_subject,
    explain,
)
from control_plane.access.ports import (
    BindingStore,
    BodyKeys,
    BootstrapStore,
    DenialLog,
    GrantMemory,
    GrantStore,
    TenantStore,
)
from control_plane.audit.domain import Fact, NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.ports import Database, Transaction
from control_plane.paging import BAD_TOKEN, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, Page, decode_token, encode_token
from shared.clock import Clock, Random
from shared.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    WrongStateError,
)
from shared.ids import AUDIT_ENTRY, InstallationId, TenantId, new_id
from shared.rpc.identity import Caller

_BETWEEN = "\x1f"
"""In page tokens, between identity and role: a character that neither has."""


class AccessAdministration:
    """What administrators and auditors do about access."""

    def __init__(
        self,
        *,
        database: Database,
        bindings: BindingStore,
        tenants: TenantStore,
        secrets: BootstrapStore,
        grants: GrantStore,
        memory: GrantMemory,
        denials: DenialLog,
        body_keys: BodyKeys,
        audit: AuditLog,
        rules: Mapping[str, Rule],
        installation: InstallationId,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._bindings = bindings
        self._tenants = tenants
        self._secrets = secrets
        self._grants = grants
        self._memory = memory
        self._denials = denials
        self._body_keys = body_keys
        self._audit = audit
        self._rules = rules
        self._installation = installation
        self._clock = clock
        self._random = random

    async def held_by(self, caller: Caller) -> Bound:
        """Return the roles of a caller and its groups in all tenants."""
        return await self._grants.bound({caller.identity, *caller.groups})

    # --- bindings

    async def bind(self, caller: Caller, *, identity: str, role: Role, tenant_id: str) -> RoleBinding:
        """Give a role, or return the binding that is there.

        Raises:
            InvalidInputError: The identity is none that can hold a role, or the role is a node's.
            PermissionDeniedError: The caller is no administrator of that tenant.
            NotFoundError: There is no such tenant.
        """
        tenant = _administered(caller, tenant_id)
        if role in OF_NODES:
            raise InvalidInputError("a node's role comes with its enrollment")
        binding = RoleBinding(
            tenant_id=tenant,
            identity=check_subject(identity, self._installation),
            role=role,
            created_by=caller.identity,
        )
        async with self._database.transaction() as tx:
            if await self._bindings.add_binding(tx, binding):
                await self._record(tx, caller, tenant, "access.bound", identity, role=str(role))
            stored = await self._stored(tx, binding)
        self._memory.forget()
        return stored

    async def unbind(self, caller: Caller, *, identity: str, role: Role, tenant_id: str) -> None:
        """Take a role back.

        Raises:
            PermissionDeniedError: The caller is no administrator of that tenant.
            NotFoundError: There is no such binding.
            WrongStateError: It is the last administrator of the installation.
        """
        tenant = _administered(caller, tenant_id)
        binding = RoleBinding(tenant_id=tenant, identity=identity, role=role)
        async with self._database.transaction() as tx:
            if tenant == DEFAULT_TENANT and role is Role.ADMIN:
                await self._require_another(tx, identity)
            if not await self._bindings.remove_binding(tx, binding):
                raise NotFoundError(f"{identity} does not hold {role} in tenant {tenant}")
            await self._record(tx, caller, tenant, "access.unbound", identity, role=str(role))
        self._memory.forget()

    async def list_bindings(
        self, caller: Caller, *, tenant_id: str, identity: str, page_size: int, page_token: str
    ) -> Page[RoleBinding]:
        """Return a page of bindings by identity and role.

        Raises:
            PermissionDeniedError: The tenant is not the caller's to see.
            InvalidInputError: The page token is not one of ours.
        """
        tenant = _seen(caller, tenant_id)
        limit = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        after, separator, role = decode_token(page_token).partition(_BETWEEN) if page_token else ("", "x", "")
        if not separator:
            raise InvalidInputError(BAD_TOKEN)
        async with self._database.transaction() as tx:
            found = await self._bindings.list_bindings(
                tx, tenant, identity=identity, after=(after, role), limit=limit + 1
            )
        items = tuple(found[:limit])
        last = items[-1] if len(found) > limit else None
        token = encode_token(f"{last.identity}{_BETWEEN}{last.role}") if last is not None else ""
        return Page(items=items, next_page_token=token)

    async def explain(
        self, caller: Caller, *, identity: str, groups: frozenset[str], method: str, tenant_id: str
    ) -> Explanation:
        """Say whether, and why, an identity may call a method in a tenant.

        Raises:
            PermissionDeniedError: The tenant is not the caller's to see.
            NotFoundError: There is no such method.
            InvalidInputError: Several methods have this short name.
        """
        tenant = _seen(caller, tenant_id)
        full = _method(self._rules, method)
        async with self._database.transaction() as tx:
            held = await self._bindings.bindings(tx, tenant, {identity, *groups})
        return explain(
            method=full, rule=self._rules[full], tenant_id=tenant, identity=identity, held=tuple(held)
        )

    async def exchange_secret(self, caller: Caller, secret: str) -> RoleBinding:
        """Make the caller an administrator by a secret that `init` printed. It is used up.

        Raises:
            PermissionDeniedError: The secret is unknown, used or expired.
            InvalidInputError: The caller's identity cannot hold a role.
        """
        identity = check_subject(caller.identity, self._installation)
        async with self._database.transaction() as tx:
            tenant = await self._secrets.use_secret(tx, hash_secret(secret), identity)
            stored = await self._bootstrapped(tx, caller, tenant) if tenant is not None else None
        if stored is not None:
            self._memory.forget()
            return stored
        refusal = PermissionDeniedError(
            "the bootstrap secret is unknown, used or expired", hint="ask an administrator for a role"
        )
        await self._denials.denied(
            actor=identity,
            known=True,
            tenant_id=DEFAULT_TENANT,
            method="access.bootstrap",
            reason=refusal.reason,
        )
        raise refusal

    async def _bootstrapped(self, tx: Transaction, caller: Caller, tenant: TenantId) -> RoleBinding:
        binding = RoleBinding(
            tenant_id=tenant, identity=caller.identity, role=Role.ADMIN, created_by="bootstrap"
        )
        await self._bindings.add_binding(tx, binding)
        await self._record(tx, caller, tenant, "access.bootstrapped", caller.identity, role=str(Role.ADMIN))
        return await self._stored(tx, binding)

    # --- tenants

    async def create_tenant(self, caller: Caller, tenant: Tenant) -> Tenant:
        """Make a tenant, or return the one that has exactly this content.

        Raises:
            PermissionDeniedError: The caller is no administrator of the installation.
            AlreadyExistsError: The name is taken by a tenant with other content.
        """
        _require_installation_admin(caller)
        async with self._database.transaction() as tx:
            added = await self._tenants.add_tenant(tx, tenant)
            stored = await self._tenant(tx, tenant.tenant_id)
            if added:
                await self._record(tx, caller, DEFAULT_TENANT, "tenant.created", tenant.tenant_id)
            elif replace(stored, created_at=None) != tenant:
                raise AlreadyExistsError(f"tenant {tenant.tenant_id} exists with other content")
            return stored

    async def get_tenant(self, caller: Caller, tenant_id: str) -> Tenant:
        """Return a tenant.

        Raises:
            NotFoundError: There is none, or the caller may not know that there is.
        """
        wanted = TenantId(tenant_id or caller.tenant_id)
        if wanted != caller.tenant_id and not _is_installation_admin(caller):
            raise NotFoundError(f"there is no tenant {tenant_id!r}")
        async with self._database.transaction() as tx:
            return await self._tenant(tx, wanted)

    async def list_tenants(self, caller: Caller, *, page_size: int, page_token: str) -> Page[Tenant]:
        """Return a page of tenants by id.

        Raises:
            PermissionDeniedError: The caller is no administrator of the installation.
            InvalidInputError: The page token is not one of ours.
        """
        _require_installation_admin(caller)
        limit = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        after = decode_token(page_token) if page_token else ""
        async with self._database.transaction() as tx:
            found = await self._tenants.list_tenants(tx, after=after, limit=limit + 1)
        items = tuple(found[:limit])
        token = encode_token(items[-1].tenant_id) if len(found) > limit else ""
        return Page(items=items, next_page_token=token)

    async def update_tenant(self, caller: Caller, tenant_id: TenantId, change: TenantChange) -> Tenant:
        """Change what is named of a tenant.

        Raises:
            PermissionDeniedError: The caller is no administrator of the installation.
            NotFoundError: There is no such tenant.
            KeyUnavailableError: Its bodies shall be encrypted, and no key can be made for them.
        """
        _require_installation_admin(caller)
        if change.encrypt_bodies:
            await self._body_keys.ensure(tenant_id, actor=caller.identity)
        async with self._database.transaction() as tx:
            before = await self._tenant(tx, tenant_id)
            after = change.apply(before)
            if after != before:
                await self._tenants.save_tenant(tx, after)
                await self._record(
                    tx,
                    caller,
                    DEFAULT_TENANT,
                    "tenant.updated",
                    tenant_id,
                    display_name=after.display_name,
                    max_pending=after.max_pending or 0,
                    executions_per_minute=after.executions_per_minute or 0,
                    encrypt_bodies=after.encrypt_bodies,
                    llm_tokens_per_day=after.llm_tokens_per_day or 0,
                    llm_cost_micros_per_day=after.llm_cost_micros_per_day or 0,
                )
        if after.encrypt_bodies != before.encrypt_bodies:
            await self._body_keys.noticed()
        return after

    async def rotate_body_key(self, caller: Caller, tenant_id: str) -> str:
        """Make another key for new bodies of a tenant; returns its id.

        Raises:
            PermissionDeniedError: The caller is no administrator of that tenant.
            NotFoundError, KeyUnavailableError: As `BodyKeys.rotate`.
        """
        return await self._body_keys.rotate(_administered(caller, tenant_id), actor=caller.identity)

    async def erase_body_keys(self, caller: Caller, tenant_id: str, *, reason: str) -> int:
        """Destroy all keys of a tenant's bodies; returns how many.

        Raises:
            PermissionDeniedError: The caller is no administrator of that tenant.
            NotFoundError, InvalidInputError, WrongStateError, KeyUnavailableError: As `BodyKeys.erase`.
        """
        tenant = _administered(caller, tenant_id)
        return await self._body_keys.erase(tenant, actor=caller.identity, reason=reason)

    # --- parts

    async def _require_another(self, tx: Transaction, identity: str) -> None:
        # A group counts for nothing here: it may be empty, and its issuer decides that.
        if not set(await self._bindings.lock_administrators(tx, DEFAULT_TENANT)) - {identity}:
            raise WrongStateError(
                f"{identity} is the last administrator of the installation",
                hint="give somebody else the role admin first; a group does not count",
            )

    async def _stored(self, tx: Transaction, binding: RoleBinding) -> RoleBinding:
        held = await self._bindings.bindings(tx, binding.tenant_id, {binding.identity})
        return next(one for one in held if one.role is binding.role)

    async def _tenant(self, tx: Transaction, tenant_id: TenantId) -> Tenant:
        found = await self._tenants.find_tenant(tx, tenant_id)
        if found is None:
            raise NotFoundError(f"there is no tenant {tenant_id!r}")
        return found

    async def _record(
        self, tx: Transaction, caller: Caller, tenant: TenantId, action: str, subject: str, **details: Fact
    ) -> None:
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=tenant,
            actor=caller.identity,
            action=action,
            subject=subject,
            details=details,
        )
        await self._audit.append(tx, [entry])


def hash_secret(secret: str) -> str:
    """Return the stored form of a bootstrap secret. Its 256 random bits need no slow hash and no salt."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _is_installation_admin(caller: Caller) -> bool:
    return caller.tenant_id == DEFAULT_TENANT and Role.ADMIN in caller.roles


def _require_installation_admin(caller: Caller) -> None:
    if not _is_installation_admin(caller):
        raise PermissionDeniedError(
            f"tenants are looked after by administrators of tenant {DEFAULT_TENANT} only"
        )


def _administered(caller: Caller, tenant_id: str) -> TenantId:
    """Return the tenant whose bindings the caller is about to change."""
    wanted = TenantId(tenant_id or caller.tenant_id)
    own = wanted == caller.tenant_id and Role.ADMIN in caller.roles
    if not own and not _is_installation_admin(caller):
        raise PermissionDeniedError(f"{caller.identity} is no administrator of tenant {wanted}")
    return wanted


def _seen(caller: Caller, tenant_id: str) -> TenantId:
    """Return the tenant whose bindings the caller is about to read."""
    wanted = TenantId(tenant_id or caller.tenant_id)
    if wanted != caller.tenant_id and not _is_installation_admin(caller):
        raise PermissionDeniedError(f"{caller.identity} may not see who holds what in tenant {wanted}")
    return wanted


def _method(rules: Mapping[str, Rule], name: str) -> str:
    found = [full for full in rules if full == name or full.endswith((f".{name}", f"/{name}"))]
    if not found:
        raise NotFoundError(f"there is no method {name!r}", hint="write it as AgentService/GetAgent")
    if len(found) > 1:
        raise InvalidInputError(f"{name!r} may be {' or '.join(found)}")
    return found[0]
