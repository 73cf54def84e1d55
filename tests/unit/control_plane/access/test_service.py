"""Who is let in, by rule, role and time."""

from dataclasses import replace
from datetime import timedelta

import pytest

from control_plane.access.domain import CLOCK_LEEWAY, Audit, Grant, Role, Rule
from control_plane.access.service import GRANT_LIFE, AccessService
from shared.errors import (
    DatabaseUnavailableError,
    NodeEvictedError,
    PermissionDeniedError,
    TenantRequiredError,
    UnauthenticatedError,
)
from shared.ids import InstallationId, TenantId
from shared.rpc.identity import Principal
from tests.fakes.clock import FakeClock

TENANT = TenantId("default")
ADMIN = "spiffe://local/caller/admin"
NODE = "spiffe://local/node/nod_1"
MINUTE = timedelta(minutes=1)
RULES = {
    "/s/Change": Rule(roles=frozenset({Role.ADMIN}), deadline=MINUTE, audit=Audit.ALL),
    "/s/Session": Rule(roles=frozenset({Role.NODE}), deadline=MINUTE, audit=Audit.ALL),
    "/s/Compile": Rule(roles=frozenset({Role.COMPILER}), deadline=MINUTE, audit=Audit.ALL),
    "/s/Enroll": Rule(roles=frozenset(), deadline=MINUTE, audit=Audit.ALL, anonymous=True),
    "/s/WhoAmI": Rule(roles=frozenset({Role.ADMIN}), deadline=MINUTE, audit=Audit.DENIALS, identified=True),
    "/s/Health": Rule(roles=frozenset(), deadline=MINUTE, audit=Audit.NONE, anonymous=True),
}


def of(identity):
    return Principal(identity=identity)


class Grants(dict):
    """Identities and what they hold; counts how often it is asked."""

    asked = 0
    away = False

    def __init__(self, held=()):
        super().__init__(held)
        self.homes = {}

    async def node(self, node_id):
        return self._find(f"spiffe://local/node/{node_id}")

    async def bound(self, subjects):
        held = {}
        for grant in filter(None, map(self._find, subjects)):
            held[grant.tenant_id] = held.get(grant.tenant_id, frozenset()) | grant.roles
        return held

    async def home(self, identity):
        return self.homes.get(identity)

    async def settle(self, identity, tenant_id):
        self.homes.setdefault(identity, tenant_id)

    def _find(self, identity):
        self.asked += 1
        if self.away:
            raise DatabaseUnavailableError("postgres is not available")
        return self.get(identity)


class Tokens:
    async def verify(self, token):
        raise UnauthenticatedError("the token is refused")


class Denials(list):
    away = False

    async def denied(self, *, actor, known, tenant_id, method, reason):
        if self.away:
            raise DatabaseUnavailableError("postgres is not available")
        self.append((actor, method, reason))


class Alarm(list):
    away = False

    async def used(self, principal, *, tenant_id, method):
        if self.away:
            raise DatabaseUnavailableError("postgres is not available")
        self.append((principal.identity, tenant_id, method, principal.break_glass))


class Desk:
    def __init__(self):
        self.clock = FakeClock()
        self.grants = Grants()
        self.denials = Denials()
        self.alarm = Alarm()
        self.access = AccessService(
            rules=RULES,
            installation=InstallationId("local"),
            grants=self.grants,
            tokens=Tokens(),
            alarm=self.alarm,
            denials=self.denials,
            clock=self.clock,
        )
        self.grants[ADMIN] = Grant(tenant_id=TENANT, roles=frozenset({Role.ADMIN}))
        self.grants[NODE] = Grant(tenant_id=TENANT, roles=frozenset({Role.NODE}))


@pytest.fixture
def desk():
    return Desk()


async def test_a_role_of_the_rule_opens_the_door(desk):
    admission = await desk.access.admit("/s/Change", of(ADMIN))
    assert (admission.caller.name, admission.caller.roles, admission.deadline) == ("admin", {"admin"}, MINUTE)


async def test_an_rpc_without_a_rule_is_refused_to_an_admin(desk):
    with pytest.raises(PermissionDeniedError):
        await desk.access.admit("/s/Unknown", of(ADMIN))


async def test_no_certificate_is_unauthenticated_and_recorded(desk):
    with pytest.raises(UnauthenticatedError):
        await desk.access.admit("/s/Change", None)
    assert desk.denials == [("anonymous", "/s/Change", "UNAUTHENTICATED")]


async def test_an_identity_of_another_installation_is_nobody_here(desk):
    foreign = "spiffe://other/caller/admin"
    desk.grants[foreign] = desk.grants[ADMIN]
    with pytest.raises(UnauthenticatedError):
        await desk.access.admit("/s/Change", of(foreign))


async def test_a_caller_without_roles_is_known_and_refused(desk):
    with pytest.raises(PermissionDeniedError, match="admin"):
        await desk.access.admit("/s/Change", of("spiffe://local/caller/stranger"))
    assert desk.denials == [("spiffe://local/caller/stranger", "/s/Change", "PERMISSION_DENIED")]


async def test_a_node_that_never_enrolled_is_refused(desk):
    with pytest.raises(UnauthenticatedError):
        await desk.access.admit("/s/Session", of("spiffe://local/node/nod_2"))


async def test_an_evicted_node_is_refused_whatever_its_certificate_says(desk):
    desk.grants[NODE] = Grant(tenant_id=TENANT, roles=frozenset({Role.NODE}), evicted=True)
    with pytest.raises(NodeEvictedError):
        await desk.access.admit("/s/Session", of(NODE))


async def test_a_node_certificate_gets_no_role_that_somebody_bound_to_it(desk):
    desk.grants[NODE] = Grant(tenant_id=TENANT, roles=frozenset({Role.ADMIN, Role.NODE}))
    with pytest.raises(PermissionDeniedError):
        await desk.access.admit("/s/Change", of(NODE))


async def test_a_node_that_compiles_gets_no_session(desk):
    desk.grants[NODE] = Grant(tenant_id=TENANT, roles=frozenset({Role.COMPILER}))
    with pytest.raises(PermissionDeniedError):
        await desk.access.admit("/s/Session", of(NODE))


@pytest.mark.parametrize(("role", "method"), [(Role.NODE, "/s/Session"), (Role.COMPILER, "/s/Compile")])
async def test_a_caller_cannot_be_made_a_node_by_a_binding(desk, role, method):
    desk.grants[ADMIN] = Grant(tenant_id=TENANT, roles=frozenset({role}))
    with pytest.raises(PermissionDeniedError):
        await desk.access.admit(method, of(ADMIN))


async def test_a_removed_role_is_gone_after_one_second_and_not_a_tick_later(desk):
    await desk.access.admit("/s/Change", of(ADMIN))
    del desk.grants[ADMIN]
    tick = timedelta(milliseconds=1)
    desk.clock.advance(GRANT_LIFE - tick)
    await desk.access.admit("/s/Change", of(ADMIN))
    desk.clock.advance(tick)
    with pytest.raises(PermissionDeniedError):
        await desk.access.admit("/s/Change", of(ADMIN))


async def test_a_known_caller_costs_no_question_to_the_database(desk):
    for _ in range(10):
        await desk.access.admit("/s/Change", of(ADMIN))
    assert desk.grants.asked == 1


async def test_without_the_database_nobody_new_gets_in(desk):
    desk.grants.away = True
    with pytest.raises(DatabaseUnavailableError):
        await desk.access.admit("/s/Change", of(ADMIN))


async def test_a_refusal_stands_when_it_cannot_be_recorded(desk):
    desk.denials.away = True
    with pytest.raises(UnauthenticatedError):
        await desk.access.admit("/s/Change", None)


async def test_enrollment_is_open_and_names_nobody(desk):
    admission = await desk.access.admit("/s/Enroll", None)
    assert (admission.caller.kind, admission.caller.roles) == ("anonymous", frozenset())


async def test_the_memory_of_callers_is_bounded(desk, monkeypatch):
    monkeypatch.setattr("control_plane.access.service.MAX_KNOWN", 4)
    for number in range(20):
        identity = f"spiffe://local/caller/c{number}"
        desk.grants[identity] = desk.grants[ADMIN]
        await desk.access.admit("/s/Change", of(identity))
    assert len(desk.access._known) == 4


ALICE = Principal(
    identity="oidc:corp/alice",
    issuer="corp",
    groups=frozenset({"group:corp/staff"}),
    expires_at=FakeClock().now() + MINUTE,
)
RED, BLUE = TenantId("red"), TenantId("blue")
CHANGE = Grant(tenant_id=RED, roles=frozenset({Role.ADMIN}))


async def test_a_group_gives_its_roles_to_the_bearer_of_a_token(desk):
    desk.grants["group:corp/staff"] = CHANGE
    admission = await desk.access.admit("/s/Change", ALICE)
    assert (admission.caller.identity, admission.caller.tenant_id) == ("oidc:corp/alice", RED)
    assert (admission.caller.kind, admission.caller.name) == ("caller", "alice")
    assert admission.identified_for == MINUTE + CLOCK_LEEWAY


async def test_a_group_of_another_issuer_gives_nothing(desk):
    desk.grants["group:evil/staff"] = CHANGE
    with pytest.raises(PermissionDeniedError):
        await desk.access.admit("/s/Change", ALICE)


async def test_the_same_identity_with_fewer_groups_is_not_taken_for_the_one_before(desk):
    desk.grants["group:corp/staff"] = CHANGE
    await desk.access.admit("/s/Change", ALICE)
    with pytest.raises(PermissionDeniedError):
        await desk.access.admit("/s/Change", replace(ALICE, groups=frozenset()))


async def test_who_is_bound_in_several_tenants_has_to_name_one(desk):
    desk.grants["oidc:corp/alice"] = CHANGE
    desk.grants["group:corp/staff"] = replace(CHANGE, tenant_id=BLUE)
    with pytest.raises(TenantRequiredError, match="blue, red"):
        await desk.access.admit("/s/Change", ALICE)
    for tenant in (RED, BLUE):
        assert (await desk.access.admit("/s/Change", ALICE, tenant)).caller.tenant_id == tenant


async def test_what_others_bind_later_changes_nothing_for_calls_that_name_no_tenant(desk):
    desk.grants["oidc:corp/alice"] = CHANGE
    await desk.access.admit("/s/Change", ALICE)
    desk.grants["group:corp/staff"] = replace(CHANGE, tenant_id=BLUE)
    desk.clock.advance(GRANT_LIFE)
    assert (await desk.access.admit("/s/Change", ALICE)).caller.tenant_id == RED
    assert (await desk.access.admit("/s/Change", ALICE, "blue")).caller.tenant_id == BLUE
    desk.access.forget()
    assert (await desk.access.admit("/s/Change", ALICE)).caller.tenant_id == RED


async def test_who_was_bound_elsewhere_first_and_never_called_is_not_sent_there(desk):
    desk.grants["group:corp/staff"] = replace(CHANGE, tenant_id=BLUE)
    desk.grants["oidc:corp/alice"] = CHANGE
    with pytest.raises(TenantRequiredError, match="several tenants: blue, red"):
        await desk.access.admit("/s/Change", ALICE)


async def test_who_loses_its_home_is_not_sent_where_others_bound_it(desk):
    desk.grants["oidc:corp/alice"] = CHANGE
    await desk.access.admit("/s/Change", ALICE)
    desk.grants["group:corp/staff"] = replace(CHANGE, tenant_id=BLUE)
    del desk.grants["oidc:corp/alice"]
    desk.clock.advance(GRANT_LIFE)
    with pytest.raises(TenantRequiredError, match="nothing in tenant red any more, but in: blue"):
        await desk.access.admit("/s/Change", ALICE)
    assert (await desk.access.admit("/s/WhoAmI", ALICE)).caller.roles == frozenset()
    assert (await desk.access.admit("/s/Change", ALICE, "blue")).caller.tenant_id == BLUE
    desk.grants["oidc:corp/alice"] = CHANGE
    desk.clock.advance(GRANT_LIFE)
    assert (await desk.access.admit("/s/Change", ALICE)).caller.tenant_id == RED


async def test_a_named_tenant_does_not_become_the_home(desk):
    desk.grants["oidc:corp/alice"] = CHANGE
    desk.grants["group:corp/staff"] = replace(CHANGE, tenant_id=BLUE)
    await desk.access.admit("/s/Change", ALICE, "blue")
    with pytest.raises(TenantRequiredError):
        await desk.access.admit("/s/Change", ALICE)


async def test_a_tenant_where_nothing_is_held_is_refused_like_one_that_does_not_exist(desk):
    desk.grants["oidc:corp/alice"] = CHANGE
    with pytest.raises(PermissionDeniedError, match="no role in tenant 'blue'"):
        await desk.access.admit("/s/Change", ALICE, "blue")
    with pytest.raises(PermissionDeniedError, match="no role in tenant 'nowhere'"):
        await desk.access.admit("/s/Change", ALICE, "nowhere")


async def test_a_token_made_for_a_tenant_counts_nowhere_else(desk):
    desk.grants["oidc:corp/alice"] = CHANGE
    desk.grants["group:corp/staff"] = replace(CHANGE, tenant_id=BLUE)
    narrow = replace(ALICE, tenant="blue")
    assert (await desk.access.admit("/s/Change", narrow)).caller.tenant_id == BLUE
    with pytest.raises(PermissionDeniedError, match="blue only"):
        await desk.access.admit("/s/Change", narrow, "red")


async def test_who_asks_who_it_is_needs_no_role_and_no_tenant(desk):
    assert (await desk.access.admit("/s/WhoAmI", ALICE)).caller.roles == frozenset()
    desk.grants["oidc:corp/alice"] = CHANGE
    desk.grants["group:corp/staff"] = replace(CHANGE, tenant_id=BLUE)
    desk.clock.advance(GRANT_LIFE)
    assert (await desk.access.admit("/s/WhoAmI", ALICE)).caller.roles == frozenset()
    # And what it was for that question it is for no other.
    with pytest.raises(TenantRequiredError):
        await desk.access.admit("/s/Change", ALICE)


async def test_a_node_may_not_even_ask_who_it_is(desk):
    with pytest.raises(PermissionDeniedError):
        await desk.access.admit("/s/WhoAmI", of(NODE))


async def test_nobody_may_not_ask_who_it_is(desk):
    with pytest.raises(UnauthenticatedError):
        await desk.access.admit("/s/WhoAmI", None)


async def test_a_token_cannot_name_a_certificate_identity(desk):
    forged = replace(ALICE, identity="oidc:corp/" + ADMIN)
    with pytest.raises(PermissionDeniedError):
        await desk.access.admit("/s/Change", forged)


async def test_a_bad_token_is_recorded_as_nobodys(desk):
    with pytest.raises(UnauthenticatedError):
        await desk.access.authenticate("/s/Change", "secret")
    assert desk.denials == [("anonymous", "/s/Change", "UNAUTHENTICATED")]


BREAKER = replace(ALICE, identity="oidc:local/break-glass/admin", issuer="local", break_glass="it burns")


async def test_breaking_glass_opens_every_door_of_an_admin_and_makes_noise_each_time(desk):
    for _ in range(3):
        admission = await desk.access.admit("/s/Change", BREAKER)
        assert admission.caller.roles == {"admin"}
    assert desk.alarm == [("oidc:local/break-glass/admin", "default", "/s/Change", "it burns")] * 3
    await desk.access.admit("/s/Change", BREAKER, "red")
    assert desk.alarm[-1][1] == "red"


async def test_breaking_glass_makes_no_node(desk):
    with pytest.raises(PermissionDeniedError):
        await desk.access.admit("/s/Session", BREAKER)


async def test_glass_that_breaks_without_a_sound_does_not_open(desk):
    desk.alarm.away = True
    with pytest.raises(DatabaseUnavailableError):
        await desk.access.admit("/s/Change", BREAKER)
