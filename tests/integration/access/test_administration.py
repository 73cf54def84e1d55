"""Bindings, tenants, the first administrator and emergencies, at a real server with a real Postgres."""

import asyncio
from datetime import timedelta

import pytest
from agentfactory.v1 import access_pb2, agents_pb2, agents_pb2_grpc, audit_pb2, audit_pb2_grpc, common_pb2

from cli.local_token import make_break_glass_token
from shared.errors import (
    AlreadyExistsError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    TenantRequiredError,
    UnauthenticatedError,
    WrongStateError,
)
from shared.local_tokens import identity_of
from tests.integration.access.stage import Access, call, running_plane

ADMIN, AUTHOR, VIEWER = access_pb2.ROLE_ADMIN, access_pb2.ROLE_AUTHOR, access_pb2.ROLE_VIEWER
GET_AGENT = "AgentService/GetAgent"


@pytest.fixture
async def plane(tmp_path, postgres_18):
    async with running_plane(tmp_path, postgres_18) as plane:
        yield plane


async def bind(channel, name, role, tenant="", identity=None):
    request = access_pb2.CreateRoleBindingRequest(
        identity=identity or identity_of(name), role=role, tenant_id=tenant
    )
    return (await call(Access(channel).CreateRoleBinding, request)).role_binding


async def unbind(channel, name, role, tenant="", identity=None):
    request = access_pb2.DeleteRoleBindingRequest(
        identity=identity or identity_of(name), role=role, tenant_id=tenant
    )
    await call(Access(channel).DeleteRoleBinding, request)


async def held(channel, **fields):
    answer = await call(Access(channel).ListRoleBindings, access_pb2.ListRoleBindingsRequest(**fields))
    return [(one.identity, one.role) for one in answer.role_bindings]


async def whoami(channel):
    return await call(Access(channel).GetCallerIdentity, access_pb2.GetCallerIdentityRequest())


async def explain(channel, identity, method, **fields):
    request = access_pb2.ExplainAccessRequest(identity=identity, method=method, **fields)
    return await call(Access(channel).ExplainAccess, request)


async def get_agent(channel):
    await call(agents_pb2_grpc.AgentServiceStub(channel).GetAgent, agents_pb2.GetAgentRequest(name="nobody"))


async def test_a_role_is_given_shown_explained_and_taken_back(plane):
    async with plane.administrator() as admin, plane.person("alice") as alice:
        with pytest.raises(PermissionDeniedError):
            await get_agent(alice)
        first = await bind(admin, "alice", VIEWER)
        assert first.created_by == "spiffe://local/caller/admin"
        assert await bind(admin, "alice", VIEWER) == first
        answer = await whoami(alice)
        assert (answer.identity, answer.tenant_id) == ("oidc:local/alice", "default")
        why = await explain(admin, "oidc:local/alice", GET_AGENT)
        assert why.allowed
        assert [one.role for one in why.by] == [VIEWER]
        why_not = await explain(admin, "oidc:local/alice", "CreateAgent")
        assert not why_not.allowed
        assert "none of the roles admin, author" in why_not.reason
        assert [one.role for one in why_not.held] == [VIEWER]
        with pytest.raises(NotFoundError):
            await get_agent(alice)
        await unbind(admin, "alice", VIEWER)
        with pytest.raises(PermissionDeniedError):
            await get_agent(alice)
        with pytest.raises(NotFoundError):
            await unbind(admin, "alice", VIEWER)
    entries = await plane.rows(
        "SELECT action, actor, subject FROM audit_entries WHERE action LIKE 'access.%bound' ORDER BY recorded_at"
    )
    who = {"actor": "spiffe://local/caller/admin", "subject": "oidc:local/alice"}
    assert entries == [{"action": "access.bound"} | who, {"action": "access.unbound"} | who]


NO_IDENTITIES = (
    "alice",
    "spiffe://other/caller/alice",
    "spiffe://local/node/nod_1",
    "oidc:Corp/alice",
    "oidc:corp/",
    "oidc:corp/a b",
    "group:corp/ a",
    "oidc:corp/a\nb",
    "oidc:" + "a" * 400,
)


async def test_what_cannot_be_an_identity_cannot_hold_a_role(plane):
    async with plane.administrator() as admin:
        for identity in NO_IDENTITIES:
            with pytest.raises(InvalidInputError):
                await bind(admin, "", ADMIN, identity=identity)


async def test_the_last_administrator_of_the_installation_stays(plane):
    async with plane.administrator() as admin:
        await unbind(admin, "admin", ADMIN)
        await bind(admin, "", ADMIN, identity="group:corp/admins")
        with pytest.raises(WrongStateError, match="last administrator"):
            await unbind(admin, "", ADMIN, identity="spiffe://local/caller/admin")
        await bind(admin, "bob", ADMIN)
        await bind(admin, "carol", ADMIN)
        await unbind(admin, "", ADMIN, identity="spiffe://local/caller/admin")
    # Of two who are left and remove each other at once, one stays.
    async with plane.person("bob") as bob, plane.person("carol") as carol:
        await asyncio.gather(unbind(bob, "carol", ADMIN), unbind(carol, "bob", ADMIN), return_exceptions=True)
    left = await plane.rows(
        "SELECT identity FROM role_bindings WHERE tenant_id = 'default' AND role = 'admin'"
        " AND identity NOT LIKE 'group:%'"
    )
    assert len(left) == 1


async def test_tenants_are_made_by_administrators_of_the_installation_alone(plane):
    async with plane.administrator() as admin:
        wanted = access_pb2.CreateTenantRequest(tenant_id="red", display_name="Red", max_pending=7)
        made = (await call(Access(admin).CreateTenant, wanted)).tenant
        assert (made.tenant_id, made.display_name, made.max_pending) == ("red", "Red", 7)
        assert (await call(Access(admin).CreateTenant, wanted)).tenant == made
        with pytest.raises(AlreadyExistsError):
            await call(Access(admin).CreateTenant, access_pb2.CreateTenantRequest(tenant_id="red"))
        changed = await call(
            Access(admin).UpdateTenant,
            access_pb2.UpdateTenantRequest(tenant_id="red", max_pending=0, executions_per_minute=60),
        )
        assert (changed.tenant.display_name, changed.tenant.max_pending) == ("Red", 0)
        assert changed.tenant.executions_per_minute == 60
        with pytest.raises(NotFoundError):
            await call(Access(admin).UpdateTenant, access_pb2.UpdateTenantRequest(tenant_id="nowhere"))
        with pytest.raises(NotFoundError):
            await bind(admin, "ruth", ADMIN, "nowhere")
        await bind(admin, "ruth", ADMIN, "red")
        await call(Access(admin).CreateTenant, access_pb2.CreateTenantRequest(tenant_id="blue"))
        first = await call(
            Access(admin).ListTenants,
            access_pb2.ListTenantsRequest(page=common_pb2.PageRequest(page_size=2)),
        )
        rest = await call(
            Access(admin).ListTenants,
            access_pb2.ListTenantsRequest(
                page=common_pb2.PageRequest(page_size=2, page_token=first.next_page_token)
            ),
        )
        names = [one.tenant_id for page in (first, rest) for one in page.tenants]
        assert (names, rest.next_page_token) == (["blue", "default", "red"], "")
    async with plane.person("ruth") as ruth:
        for method, request in (
            ("CreateTenant", access_pb2.CreateTenantRequest(tenant_id="mine")),
            ("ListTenants", access_pb2.ListTenantsRequest()),
            ("UpdateTenant", access_pb2.UpdateTenantRequest(tenant_id="red", max_pending=1)),
        ):
            with pytest.raises(PermissionDeniedError):
                await call(getattr(Access(ruth), method), request)
        with pytest.raises(NotFoundError):
            await call(Access(ruth).GetTenant, access_pb2.GetTenantRequest(tenant_id="blue"))
        own = await call(Access(ruth).GetTenant, access_pb2.GetTenantRequest())
        assert own.tenant.tenant_id == "red"


async def test_an_administrator_manages_the_bindings_of_its_own_tenant_alone(plane):
    for tenant in ("red", "blue"):
        await plane.make_tenant(tenant)
    await plane.bind("ruth", "admin", "red")
    async with plane.person("ruth") as ruth:
        assert (await bind(ruth, "rob", ADMIN)).tenant_id == "red"
        assert (await bind(ruth, "ray", AUTHOR, "red")).tenant_id == "red"
        for tenant in ("blue", "default", "nowhere"):
            with pytest.raises(PermissionDeniedError):
                await bind(ruth, "ruth", ADMIN, tenant)
            with pytest.raises(PermissionDeniedError):
                await unbind(ruth, "admin", ADMIN, tenant)
            with pytest.raises(PermissionDeniedError):
                await held(ruth, tenant_id=tenant)
            with pytest.raises(PermissionDeniedError):
                await explain(ruth, "oidc:local/admin", GET_AGENT, tenant_id=tenant)
        everybody = await held(ruth)
        assert everybody == [
            ("oidc:local/ray", AUTHOR),
            ("oidc:local/rob", ADMIN),
            ("oidc:local/ruth", ADMIN),
        ]
        # No tenant but `default` has to keep an administrator: that one's can make another.
        await unbind(ruth, "rob", ADMIN)
        await unbind(ruth, "ruth", ADMIN)


async def test_pages_of_bindings_hold_each_once(plane):
    async with plane.administrator() as admin:
        for name in ("a", "b", "c"):
            for role in (VIEWER, AUTHOR):
                await bind(admin, name, role)
        seen, token = [], ""
        while True:
            page = common_pb2.PageRequest(page_size=3, page_token=token)
            answer = await call(Access(admin).ListRoleBindings, access_pb2.ListRoleBindingsRequest(page=page))
            seen += [(one.identity, one.role) for one in answer.role_bindings]
            token = answer.next_page_token
            if not token:
                break
        assert len(seen) == len(set(seen)) == 8
        assert seen == await held(admin)
        page = common_pb2.PageRequest(page_token="AAAA")
        with pytest.raises(InvalidInputError):
            await call(Access(admin).ListRoleBindings, access_pb2.ListRoleBindingsRequest(page=page))


async def test_an_administrator_elsewhere_cannot_change_where_a_caller_works(plane):
    for tenant in ("red", "blue"):
        await plane.make_tenant(tenant)
    await plane.bind("alice", "viewer", "red")
    await plane.bind("mallory", "admin", "blue")
    async with plane.person("alice") as alice, plane.person("mallory") as mallory:
        assert (await whoami(alice)).tenant_id == "red"
        await bind(mallory, "alice", ADMIN)
        answer = await whoami(alice)
        assert ([one.tenant_id for one in answer.held], answer.tenant_id) == (["blue", "red"], "red")
        with pytest.raises(NotFoundError):
            await get_agent(alice)
    async with plane.person("alice", "blue") as alice:
        assert (await whoami(alice)).tenant_id == "blue"


async def test_who_is_bound_in_two_tenants_chooses_one(plane):
    for tenant in ("red", "blue"):
        await plane.make_tenant(tenant)
        await plane.bind("alice", "viewer", tenant)
    async with plane.person("alice") as alice:
        with pytest.raises(TenantRequiredError, match="blue, red"):
            await get_agent(alice)
        answer = await whoami(alice)
        assert ([one.tenant_id for one in answer.held], answer.tenant_id) == (["blue", "red"], "")
    for tenant in ("red", "blue"):
        async with plane.person("alice", tenant) as alice:
            assert (await whoami(alice)).tenant_id == tenant
        async with plane.bearer(plane.token("alice", tenant)) as alice:
            assert (await whoami(alice)).tenant_id == tenant
    async with plane.bearer(plane.token("alice", "red"), "blue") as alice:
        with pytest.raises(PermissionDeniedError, match="red only"):
            await get_agent(alice)
    async with plane.person("alice", "default") as alice:
        with pytest.raises(PermissionDeniedError):
            await get_agent(alice)


async def test_the_bootstrap_secret_makes_one_administrator_once(plane):
    secret = plane.bootstrap_secret
    assert secret.startswith("afb_")
    request = access_pb2.ExchangeBootstrapSecretRequest(secret=secret)
    stored = await plane.rows("SELECT * FROM bootstrap_secrets")
    assert secret not in str(stored)
    wrong = access_pb2.ExchangeBootstrapSecretRequest(secret=secret[:-4] + "AAAA")
    async with plane.person("eve") as eve:
        with pytest.raises(PermissionDeniedError, match="bootstrap secret"):
            await call(Access(eve).ExchangeBootstrapSecret, wrong)
    async with plane.stranger() as nobody:
        with pytest.raises(UnauthenticatedError):
            await call(Access(nobody).ExchangeBootstrapSecret, request)
    names = [f"racer{number}" for number in range(4)]

    async def race(name):
        async with plane.person(name) as channel:
            return await call(Access(channel).ExchangeBootstrapSecret, request)

    results = await asyncio.gather(*map(race, names), return_exceptions=True)
    won = [name for name, result in zip(names, results, strict=True) if not isinstance(result, Exception)]
    assert len(won) == 1
    assert all(
        isinstance(result, PermissionDeniedError) for result in results if isinstance(result, Exception)
    )
    async with plane.person(won[0]) as channel:
        assert [list(one.roles) for one in (await whoami(channel)).held] == [[ADMIN]]
        # At once, though it was refused a moment ago.
        assert await held(channel)
    done = await plane.rows(
        "SELECT action, result FROM audit_entries WHERE subject = $1", identity_of(won[0])
    )
    assert {"action": "access.bootstrapped", "result": "ok"} in done


async def test_an_expired_bootstrap_secret_makes_nobody_anything(plane):
    await plane.rows("UPDATE bootstrap_secrets SET expires_at = now()")
    async with plane.person("late") as late:
        with pytest.raises(PermissionDeniedError):
            await call(
                Access(late).ExchangeBootstrapSecret,
                access_pb2.ExchangeBootstrapSecretRequest(secret=plane.bootstrap_secret),
            )


async def test_breaking_glass_is_recorded_at_every_use(plane):
    await plane.make_tenant("red")
    token = make_break_glass_token(
        plane.paths, subject="admin", life=timedelta(minutes=5), reason="the identity provider is down"
    )
    async with plane.bearer(token) as channel:
        for _ in range(3):
            await held(channel)
    async with plane.bearer(token, "red") as channel:
        await bind(channel, "rescuer", ADMIN)
    entries = await plane.rows(
        "SELECT tenant_id, actor, details->>'reason' AS reason, details->>'tenant' AS tenant"
        " FROM audit_entries WHERE action = 'access.break_glass' ORDER BY recorded_at, tenant_id"
    )
    assert [(one["tenant_id"], one["tenant"]) for one in entries] == [
        *[("default", "default")] * 3,
        ("default", "red"),
        ("red", "red"),
    ]
    assert {one["actor"] for one in entries} == {"oidc:local/break-glass/admin"}
    assert {one["reason"] for one in entries} == {"the identity provider is down"}
    bound = await plane.rows("SELECT created_by FROM role_bindings WHERE tenant_id = 'red'")
    assert bound == [{"created_by": "oidc:local/break-glass/admin"}]


async def test_an_auditor_reads_the_log_and_changes_nothing(plane):
    await plane.bind("tom", "auditor")
    async with plane.person("tom") as tom:
        entries = await call(
            audit_pb2_grpc.AuditServiceStub(tom).ListAuditEntries, audit_pb2.ListAuditEntriesRequest()
        )
        assert entries.audit_entries
        assert await held(tom)
        with pytest.raises(PermissionDeniedError):
            await bind(tom, "tom", ADMIN)


async def test_the_log_names_the_gateway_beside_the_caller(plane):
    await plane.bind("ann", "admin")
    async with plane.person("ann") as ann:
        await Access(ann).CreateRoleBinding(
            access_pb2.CreateRoleBindingRequest(identity=identity_of("by-rest"), role=VIEWER),
            metadata=(("x-forwarded-by", "gateway/one"),),
            timeout=60,
        )
    found = await plane.rows(
        "SELECT actor, details->>'forwarded_by' AS by FROM audit_entries WHERE subject = $1",
        identity_of("by-rest"),
    )
    assert found == [{"actor": "oidc:local/ann", "by": "gateway/one"}]


async def test_keys_of_bodies_belong_to_their_tenant_and_encrypting_to_the_installation(plane):
    encrypt = access_pb2.UpdateTenantRequest(tenant_id="red", encrypt_bodies=True)

    def erase(tenant):
        return access_pb2.EraseBodyKeysRequest(tenant_id=tenant, reason="request 4711")

    async with plane.administrator() as admin:
        for name in ("red", "blue"):
            await call(Access(admin).CreateTenant, access_pb2.CreateTenantRequest(tenant_id=name))
        await bind(admin, "ruth", ADMIN, "red")
        await bind(admin, "vera", VIEWER, "red")
        assert (await call(Access(admin).UpdateTenant, encrypt)).tenant.encrypt_bodies
        await call(Access(admin).UpdateTenant, encrypt)  # a repeat makes no other key
        made = await plane.rows("SELECT tenant_id, retired_at IS NULL AS newest FROM body_keys")
        assert [(row["tenant_id"], row["newest"]) for row in made] == [("red", True)]
        with pytest.raises(NotFoundError):
            await call(Access(admin).EraseBodyKeys, erase("nowhere"))
        with pytest.raises(InvalidInputError):
            await call(Access(admin).EraseBodyKeys, access_pb2.EraseBodyKeysRequest(tenant_id="red"))
    async with plane.person("vera") as vera:
        for method, request in (
            ("RotateBodyKey", access_pb2.RotateBodyKeyRequest()),
            ("EraseBodyKeys", erase("red")),
        ):
            with pytest.raises(PermissionDeniedError):
                await call(getattr(Access(vera), method), request)
    async with plane.person("ruth") as ruth:
        with pytest.raises(PermissionDeniedError):
            await call(Access(ruth).UpdateTenant, encrypt)
        for method, request in (
            ("RotateBodyKey", access_pb2.RotateBodyKeyRequest(tenant_id="blue")),
            ("EraseBodyKeys", erase("blue")),
        ):
            with pytest.raises(PermissionDeniedError):
                await call(getattr(Access(ruth), method), request)
        rotated = await call(Access(ruth).RotateBodyKey, access_pb2.RotateBodyKeyRequest())
        assert rotated.body_key_id.startswith("bky_")
        assert (await call(Access(ruth).EraseBodyKeys, erase("red"))).keys == 2
        assert (await call(Access(ruth).EraseBodyKeys, erase("red"))).keys == 0
    left = await plane.rows("SELECT octet_length(wrapped) AS size, destroyed_at FROM body_keys")
    assert all(row["size"] == 0 and row["destroyed_at"] is not None for row in left)
    said = await plane.rows("SELECT actor FROM audit_entries WHERE action = 'tenant.body_keys_erased'")
    assert [row["actor"] for row in said] == [identity_of("ruth")]
