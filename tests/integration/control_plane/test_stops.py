"""Emergency stops over a real Postgres: who may make them, what they leave on record, what each look finds."""

import asyncio

import pytest

from control_plane.audit.domain import SYSTEM_ACTOR
from control_plane.executions.domain import HaltScope
from control_plane.policy.domain import Subject
from control_plane.stops.domain import StopTarget
from control_plane.stops.service import MAX_LIVE_STOPS
from control_plane.templates.domain import TemplateRef
from shared.errors import InvalidInputError, NotFoundError, PermissionDeniedError, ResourceExhaustedError
from shared.ids import TenantId
from tests.integration.control_plane.registry import ADMIN, AUTHOR, TENANT, package

OTHER = TenantId("other")
STRANGER = Subject(identity="spiffe://test/caller/stranger", tenant_id=OTHER, roles=frozenset({"admin"}))
OWN = StopTarget(tenant_id=TENANT)


async def listed(registry, subject=ADMIN, *, lifted=False):
    page = await registry.stops.list(subject, lifted=lifted, page_size=0, page_token="")
    return [stop.stop_id for stop in page.items]


async def test_a_stop_is_on_record_stops_what_runs_and_can_be_repeated(registry):
    first = await registry.stops.create(ADMIN, OWN, reason="incident")
    again = await registry.stops.create(ADMIN, OWN, reason="incident, again")
    assert first.stop == again.stop
    assert registry.stopped == [("", "STOPPED", ADMIN.identity)] * 2
    assert await registry.audit() == [("stop.created", first.stop.stop_id, "ok")]


async def test_a_lifted_stop_stays_on_record_and_lifting_again_has_no_effect(registry):
    made = (await registry.stops.create(ADMIN, OWN, reason="incident")).stop
    lifted = await registry.stops.lift(ADMIN, made.stop_id, reason="fixed")
    assert (lifted.holds, lifted.lifted_by, lifted.lift_reason) == (False, ADMIN.identity, "fixed")
    assert await registry.stops.lift(ADMIN, made.stop_id, reason="again") == lifted
    assert await listed(registry) == []
    assert await listed(registry, lifted=True) == [made.stop_id]
    assert [action for action, _, _ in await registry.audit()] == ["stop.created", "stop.lifted"]
    assert (await registry.stops.create(ADMIN, OWN, reason="again")).stop.stop_id != made.stop_id


async def test_of_two_at_once_one_is_made(registry):
    answers = await asyncio.gather(
        *(registry.stops.create(ADMIN, OWN, reason="incident") for _ in range(4)), return_exceptions=True
    )
    made = {answer.stop.stop_id for answer in answers if not isinstance(answer, Exception)}
    assert len(made) == len(await listed(registry)) == 1


async def test_only_the_installations_own_tenant_stops_another(registry):
    theirs = (await registry.stops.create(ADMIN, StopTarget(tenant_id=OTHER), reason="abuse")).stop
    with pytest.raises(PermissionDeniedError):
        await registry.stops.create(STRANGER, OWN, reason="revenge")
    own = (await registry.stops.create(ADMIN, OWN, reason="incident")).stop
    with pytest.raises(NotFoundError):
        await registry.stops.lift(STRANGER, own.stop_id, reason="let me")
    assert await listed(registry, STRANGER) == [theirs.stop_id]
    assert sorted(await listed(registry)) == sorted([own.stop_id, theirs.stop_id])


async def test_there_has_to_be_something_to_stop(registry):
    await registry.publish(await package())
    digest = (await registry.catalog.get(TENANT, TemplateRef(name="probe", version="1.0.0"))).digest
    for target in (
        StopTarget(tenant_id=TenantId("nobody")),
        StopTarget(tenant_id=TENANT, template_name="prob"),
        StopTarget(tenant_id=TENANT, template_digest="sha256:" + "f" * 64),
        StopTarget(tenant_id=OTHER, template_digest=digest),
    ):
        with pytest.raises(NotFoundError):
            await registry.stops.create(ADMIN, target, reason="?")
    with pytest.raises(InvalidInputError):
        StopTarget(tenant_id=TENANT, template_name="probe", template_digest=digest)
    assert await registry.rows("SELECT count(*) FROM stops") == [(0,)]


async def test_a_tenant_has_so_many_stops_at_most(registry):
    await registry.run(
        "INSERT INTO stops (stop_id, tenant_id, template_name, reason, created_by)"
        f" SELECT 'stp_' || n, 'default', 't' || n, '?', '?' FROM generate_series(1, {MAX_LIVE_STOPS}) n"
    )
    with pytest.raises(ResourceExhaustedError):
        await registry.stops.create(ADMIN, OWN, reason="one more")


async def test_a_bad_id_or_page_token_is_refused(registry):
    with pytest.raises(InvalidInputError):
        await registry.stops.lift(ADMIN, "stp_1", reason="")
    with pytest.raises(InvalidInputError):
        await registry.stops.list(ADMIN, lifted=False, page_size=0, page_token="AAAA")


async def test_each_look_finds_every_stop_and_what_was_closed_lately(registry):
    await registry.publish(await package())
    await registry.publish(await package(version="1.1.0"))
    retired = await registry.templates.retire(AUTHOR, TemplateRef(name="probe", version="1.0.0"))
    revoked = await registry.templates.revoke(
        ADMIN, TemplateRef(name="probe", version="1.1.0"), reason="leaks"
    )
    await registry.stops.create(ADMIN, StopTarget(tenant_id=TENANT, template_name="probe"), reason="incident")
    registry.stopped.clear()
    registry.stopped.scopes.clear()

    await registry.watch.look()
    await registry.run("UPDATE template_versions SET state_changed_at = now() - interval '61 seconds'")
    first, registry.stopped[:] = list(registry.stopped), []
    await registry.watch.look()

    assert sorted(first) == sorted(
        [
            ("", "STOPPED", SYSTEM_ACTOR),
            (retired.digest, "TEMPLATE_RETIRED", SYSTEM_ACTOR),
            (revoked.digest, "TEMPLATE_REVOKED", SYSTEM_ACTOR),
        ]
    )
    assert registry.stopped == [("", "STOPPED", SYSTEM_ACTOR)]
    assert registry.stopped.scopes[-1] == HaltScope(tenant_id=TENANT, template_name="probe")


async def test_what_is_retired_ends_what_waits_also_when_it_is_repeated(registry):
    await registry.publish(await package())
    for _ in range(2):
        version = await registry.templates.retire(AUTHOR, TemplateRef(name="probe", version="1.0.0"))
    assert registry.stopped == [(version.digest, "TEMPLATE_RETIRED", AUTHOR.identity)] * 2


async def test_a_quarantine_keeps_its_evidence_out_of_lists_and_after_it_is_lifted(registry):
    await registry.publish(await package())
    digest = (await registry.catalog.get(TENANT, TemplateRef(name="probe", version="1.0.0"))).digest
    target = StopTarget(tenant_id=TENANT, template_digest=digest)

    made = (await registry.stops.create(ADMIN, target, reason="they differ", evidence=b'{"a":1}')).stop

    (shown,) = (await registry.stops.list(ADMIN, lifted=False, page_size=0, page_token="")).items
    assert (shown.stop_id, shown.is_quarantine, shown.evidence) == (made.stop_id, True, b"")
    await registry.stops.lift(ADMIN, made.stop_id, reason="known")
    assert (await registry.stops.get(ADMIN, made.stop_id)).evidence == b'{"a":1}'
    with pytest.raises(NotFoundError):
        await registry.stops.get(STRANGER, made.stop_id)
    assert "template.quarantined" in [action for action, _, _ in await registry.audit()]


@pytest.mark.parametrize(
    ("target", "evidence"),
    [
        (OWN, b"{}"),
        (StopTarget(tenant_id=TENANT, template_name="probe"), b"{}"),
        (StopTarget(tenant_id=TENANT, template_digest="sha256:" + "f" * 64), b'{"b":1, "a":1}'),
        (StopTarget(tenant_id=TENANT, template_digest="sha256:" + "f" * 64), b"no JSON"),
    ],
    ids=["tenant", "every version", "not canonical", "no JSON"],
)
async def test_evidence_is_of_one_version_and_canonical(registry, target, evidence):
    with pytest.raises(InvalidInputError):
        await registry.stops.create(ADMIN, target, reason="?", evidence=evidence)
