"""gRPC adapter of access: parse, one use case, convert."""

from typing import Any, Final

from agentfactory.v1 import access_pb2, access_pb2_grpc

from control_plane.access.administration import AccessAdministration
from control_plane.access.domain import Explanation, Role, RoleBinding, Tenant, TenantChange
from shared.ids import TenantId
from shared.rpc.identity import caller

_ROLES: Final = {
    Role.VIEWER: access_pb2.ROLE_VIEWER,
    Role.CALLER: access_pb2.ROLE_CALLER,
    Role.AUTHOR: access_pb2.ROLE_AUTHOR,
    Role.OPERATOR: access_pb2.ROLE_OPERATOR,
    Role.AUDITOR: access_pb2.ROLE_AUDITOR,
    Role.ADMIN: access_pb2.ROLE_ADMIN,
}
_ROLES_FROM_PROTO: Final = {value: role for role, value in _ROLES.items()}


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    """Serves `AccessService`."""

    def __init__(self, administration: AccessAdministration) -> None:
        self._administration = administration

    async def GetCallerIdentity(
        self, request: access_pb2.GetCallerIdentityRequest, _: Any
    ) -> access_pb2.GetCallerIdentityResponse:
        del request
        who = caller()
        held = await self._administration.held_by(who)
        return access_pb2.GetCallerIdentityResponse(
            identity=who.identity,
            groups=sorted(who.groups),
            tenant_id=who.tenant_id if who.roles or not held else "",
            held=[
                access_pb2.TenantRoles(tenant_id=tenant_id, roles=_roles(held[tenant_id]))
                for tenant_id in sorted(held)
            ],
        )

    async def CreateRoleBinding(
        self, request: access_pb2.CreateRoleBindingRequest, _: Any
    ) -> access_pb2.CreateRoleBindingResponse:
        binding = await self._administration.bind(
            caller(),
            identity=request.identity,
            role=_ROLES_FROM_PROTO[request.role],
            tenant_id=request.tenant_id,
        )
        return access_pb2.CreateRoleBindingResponse(role_binding=_binding(binding))

    async def ListRoleBindings(
        self, request: access_pb2.ListRoleBindingsRequest, _: Any
    ) -> access_pb2.ListRoleBindingsResponse:
        page = await self._administration.list_bindings(
            caller(),
            tenant_id=request.tenant_id,
            identity=request.identity,
            page_size=request.page.page_size,
            page_token=request.page.page_token,
        )
        return access_pb2.ListRoleBindingsResponse(
            role_bindings=[_binding(one) for one in page.items], next_page_token=page.next_page_token
        )

    async def DeleteRoleBinding(
        self, request: access_pb2.DeleteRoleBindingRequest, _: Any
    ) -> access_pb2.DeleteRoleBindingResponse:
        await self._administration.unbind(
            caller(),
            identity=request.identity,
            role=_ROLES_FROM_PROTO[request.role],
            tenant_id=request.tenant_id,
        )
        return access_pb2.DeleteRoleBindingResponse()

    async def ExplainAccess(
        self, request: access_pb2.ExplainAccessRequest, _: Any
    ) -> access_pb2.ExplainAccessResponse:
        explanation = await self._administration.explain(
            caller(),
            identity=request.identity,
            groups=frozenset(request.groups),
            method=request.method,
            tenant_id=request.tenant_id,
        )
        return _explanation(explanation)

    async def ExchangeBootstrapSecret(
        self, request: access_pb2.ExchangeBootstrapSecretRequest, _: Any
    ) -> access_pb2.ExchangeBootstrapSecretResponse:
        binding = await self._administration.exchange_secret(caller(), request.secret)
        return access_pb2.ExchangeBootstrapSecretResponse(role_binding=_binding(binding))

    async def CreateTenant(
        self, request: access_pb2.CreateTenantRequest, _: Any
    ) -> access_pb2.CreateTenantResponse:
        wanted = Tenant(
            tenant_id=TenantId(request.tenant_id),
            display_name=request.display_name,
            max_pending=request.max_pending or None,
            executions_per_minute=request.executions_per_minute or None,
            llm_tokens_per_day=request.llm_tokens_per_day or None,
            llm_cost_micros_per_day=request.llm_cost_micros_per_day or None,
        )
        tenant = await self._administration.create_tenant(caller(), wanted)
        return access_pb2.CreateTenantResponse(tenant=_tenant(tenant))

    async def GetTenant(self, request: access_pb2.GetTenantRequest, _: Any) -> access_pb2.GetTenantResponse:
        tenant = await self._administration.get_tenant(caller(), request.tenant_id)
        return access_pb2.GetTenantResponse(tenant=_tenant(tenant))

    async def ListTenants(
        self, request: access_pb2.ListTenantsRequest, _: Any
    ) -> access_pb2.ListTenantsResponse:
        page = await self._administration.list_tenants(
            caller(), page_size=request.page.page_size, page_token=request.page.page_token
        )
        return access_pb2.ListTenantsResponse(
            tenants=[_tenant(one) for one in page.items], next_page_token=page.next_page_token
        )

    async def UpdateTenant(
        self, request: access_pb2.UpdateTenantRequest, _: Any
    ) -> access_pb2.UpdateTenantResponse:
        change = TenantChange(
            display_name=request.display_name if request.HasField("display_name") else None,
            max_pending=request.max_pending if request.HasField("max_pending") else None,
            executions_per_minute=request.executions_per_minute
            if request.HasField("executions_per_minute")
            else None,
            encrypt_bodies=request.encrypt_bodies if request.HasField("encrypt_bodies") else None,
            llm_tokens_per_day=request.llm_tokens_per_day if request.HasField("llm_tokens_per_day") else None,
            llm_cost_micros_per_day=request.llm_cost_micros_per_day
            if request.HasField("llm_cost_micros_per_day")
            else None,
        )
        tenant = await self._administration.update_tenant(caller(), TenantId(request.tenant_id), change)
        return access_pb2.UpdateTenantResponse(tenant=_tenant(tenant))

    async def RotateBodyKey(
        self, request: access_pb2.RotateBodyKeyRequest, _: Any
    ) -> access_pb2.RotateBodyKeyResponse:
        key_id = await self._administration.rotate_body_key(caller(), request.tenant_id)
        return access_pb2.RotateBodyKeyResponse(body_key_id=key_id)

    async def EraseBodyKeys(
        self, request: access_pb2.EraseBodyKeysRequest, _: Any
    ) -> access_pb2.EraseBodyKeysResponse:
        keys = await self._administration.erase_body_keys(caller(), request.tenant_id, reason=request.reason)
        return access_pb2.EraseBodyKeysResponse(keys=keys)


def _roles(roles: frozenset[Role]) -> "list[access_pb2.Role.ValueType]":
    return sorted(_ROLES[role] for role in roles if role in _ROLES)


def _binding(binding: RoleBinding) -> access_pb2.RoleBinding:
    message = access_pb2.RoleBinding(
        tenant_id=binding.tenant_id,
        identity=binding.identity,
        role=_ROLES.get(binding.role, access_pb2.ROLE_UNSPECIFIED),
        created_by=binding.created_by,
    )
    if binding.created_at is not None:
        message.created_at.FromDatetime(binding.created_at)
    return message


def _explanation(explanation: Explanation) -> access_pb2.ExplainAccessResponse:
    return access_pb2.ExplainAccessResponse(
        allowed=explanation.allowed,
        method=explanation.method,
        tenant_id=explanation.tenant_id,
        needed=_roles(explanation.needed),
        by=[_binding(one) for one in explanation.by],
        reason=explanation.reason,
        held=[_binding(one) for one in explanation.held],
    )


def _tenant(tenant: Tenant) -> access_pb2.Tenant:
    message = access_pb2.Tenant(
        tenant_id=tenant.tenant_id,
        display_name=tenant.display_name,
        max_pending=tenant.max_pending or 0,
        executions_per_minute=tenant.executions_per_minute or 0,
        encrypt_bodies=tenant.encrypt_bodies,
        llm_tokens_per_day=tenant.llm_tokens_per_day or 0,
        llm_cost_micros_per_day=tenant.llm_cost_micros_per_day or 0,
    )
    if tenant.created_at is not None:
        message.created_at.FromDatetime(tenant.created_at)
    return message
