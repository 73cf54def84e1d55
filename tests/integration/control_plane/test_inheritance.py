"""Templates that extend others, at the registry: what it stores, what it refuses, how children follow."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from control_plane.policy.domain import Subject
from control_plane.templates.domain import TemplateRef, TemplateState
from shared.agent_toml import parse_agent_toml
from shared.digests import sha256_digest
from shared.errors import (
    AgentFactoryError,
    AlreadyExistsError,
    InvalidInputError,
    ParentMissingError,
    TemplateCycleError,
    TemplateRetiredError,
    TemplateRevokedError,
    TemplateWidensError,
)
from shared.ids import TenantId
from shared.inheritance import Parent, Schemas, inherit
from shared.limits import RequestedLimits
from shared.manifest import ModuleFile, TemplateName, decode_manifest
from shared.packages import SignedPackage, make_package, sign_package
from shared.schemas import JsonSchema
from tests.fixtures.keys import signer
from tests.integration.control_plane.registry import ADMIN, AUTHOR, MODULE, PUBLISHER, TENANT, package
from tests.integration.control_plane.test_templates import custom_section

OTHERS = Subject(identity="spiffe://test/caller/other", tenant_id=TenantId("other"), roles=AUTHOR.roles)
OWN_MODULE = MODULE + custom_section()


def child_of(parent, *, name="child", version="1.0.0", limits="", schema=None, module=None):
    """Return the manifest of a template that extends a published one."""
    base = Parent.of(parent.manifest)
    text = f'[template]\nname = "{name}"\nversion = "{version}"\nextends = "{base.manifest.full_name}"\n'
    own = (
        None
        if module is None
        else ModuleFile(file_name="own.wasm", digest=sha256_digest(module), size_bytes=len(module))
    )
    schemas = Schemas(parameters=None if schema is None else JsonSchema.from_object(schema))
    return inherit(parse_agent_toml(f"{text}{limits}".encode()), schemas, own, base)


async def signed(manifest, module=None) -> SignedPackage:
    return await sign_package(make_package(manifest, module), [signer(PUBLISHER)])


async def publish(registry, manifest, module=None, subject=AUTHOR):
    return await registry.publish(await signed(manifest, module), subject, module=module or b"")


async def untouched(registry, parents=1):
    return await registry.rows("SELECT count(*) FROM template_versions") == [(parents,)]


@pytest.fixture
async def base(registry):
    return await registry.publish(await package(name="base", limits=RequestedLimits(wall_ms=1000)))


async def test_a_child_without_a_module_of_its_own_has_its_parents(registry, base):
    child = await publish(registry, child_of(base, limits="[limits]\nwall_ms = 500"))
    assert (child.module_digest, child.ancestors) == (base.module_digest, (base.digest,))
    manifest = decode_manifest(
        (await registry.catalog.get(TENANT, TemplateRef(digest=child.digest))).manifest
    )
    assert manifest.limits.wall_ms == 500
    agent = await registry.agents.create(
        AUTHOR, name="desk", template=TemplateRef(digest=child.digest), parameters=b'{"depth":1}'
    )
    resolved = await registry.directory.resolve(TENANT, agent.name)
    assert (resolved.limits.wall_ms, resolved.module_digest) == (500, base.module_digest)


async def test_a_child_may_bring_a_module_and_publishing_again_returns_it(registry, base):
    manifest = child_of(base, module=OWN_MODULE)
    child = await publish(registry, manifest, OWN_MODULE)
    assert child.module_digest == sha256_digest(OWN_MODULE)
    assert await publish(registry, manifest, OWN_MODULE) == child


async def test_three_levels_check_parameters_against_all_schemas(registry, base):
    middle = await publish(registry, child_of(base, name="middle", schema={"required": ["depth"]}))
    leaf = await publish(
        registry, child_of(middle, name="leaf", schema={"properties": {"depth": {"maximum": 5}}})
    )
    assert leaf.ancestors == (middle.digest, base.digest)
    ref = TemplateRef(digest=leaf.digest)
    for wrong in (b"{}", b'{"depth":6}', b'{"depth":"x"}', b'{"depth":1,"more":1}'):
        with pytest.raises(InvalidInputError):
            await registry.agents.create(AUTHOR, name="desk", template=ref, parameters=wrong)
    await registry.agents.create(AUTHOR, name="desk", template=ref, parameters=b'{"depth":5}')


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda m: replace(m, limits=replace(m.limits, wall_ms=2000)), TemplateWidensError),
        (lambda m: replace(m, parameters_schema=None), TemplateWidensError),
        (
            lambda m: replace(m, extends=(replace(m.extends[0], digest=sha256_digest(b"another")),)),
            ParentMissingError,
        ),
        (
            lambda m: replace(
                m, extends=(replace(m.extends[0], name=TemplateName(name="x", version="1.0.0")),)
            ),
            ParentMissingError,
        ),
        (lambda m: replace(m, extends=m.extends + m.extends), TemplateCycleError),
        (lambda m: replace(m, name="base"), TemplateCycleError),
    ],
    ids=["wider limit", "no schema", "another digest", "another name", "twice", "itself"],
)
async def test_a_signed_child_that_lies_is_refused_before_its_module_is_read(registry, base, change, error):
    forged = await signed(change(child_of(base)))

    async def chunks():
        raise AssertionError("the module was asked for")
        yield b""

    with pytest.raises(error, match=r"child@1\.0\.0|base@1\.0\.0"):
        await registry.templates.publish(AUTHOR, forged.envelope, chunks())
    assert await untouched(registry)


async def test_a_parent_of_another_tenant_is_missing(registry, base):
    with pytest.raises(
        ParentMissingError, match=r"child@1\.0\.0 → base@1\.0\.0: base@1\.0\.0 .* not published"
    ):
        await publish(registry, child_of(base), subject=OTHERS)
    assert await untouched(registry)


async def test_another_module_than_the_parents_cannot_be_left_out(registry, base):
    with pytest.raises(AgentFactoryError, match="check 6: the module ends after 0"):
        await publish(registry, child_of(base, module=OWN_MODULE))
    assert await untouched(registry)


async def test_other_content_under_a_childs_version_is_refused(registry, base):
    await publish(registry, child_of(base))
    with pytest.raises(AlreadyExistsError):
        await publish(registry, child_of(base, limits="[limits]\nwall_ms = 7"))


async def test_children_are_retired_and_revoked_with_their_parent(registry, base):
    middle = await publish(registry, child_of(base, name="middle"))
    leaf = await publish(registry, child_of(middle, name="leaf"))
    other = await registry.publish(await package(name="other"))
    agent = await registry.agents.create(
        AUTHOR, name="desk", template=TemplateRef(digest=leaf.digest), parameters=b"{}"
    )
    await registry.templates.retire(AUTHOR, TemplateRef(digest=base.digest))
    registry.cached.changed()  # as the announcement does
    with pytest.raises(TemplateRetiredError):
        await registry.agents.create(
            AUTHOR, name="late", template=TemplateRef(digest=leaf.digest), parameters=b"{}"
        )
    await registry.templates.revoke(ADMIN, TemplateRef(digest=base.digest), reason="leaks")
    registry.directory.changed()
    with pytest.raises(TemplateRevokedError, match=r"template leaf 1\.0\.0 is revoked"):
        await registry.directory.resolve(TENANT, agent.name)
    states = await registry.rows("SELECT name, state FROM template_versions ORDER BY name")
    assert states == [("base", "revoked"), ("leaf", "revoked"), ("middle", "revoked"), ("other", "active")]
    assert {digest for digest, *_ in registry.stopped} == {base.digest, middle.digest, leaf.digest}
    assert other.digest not in {digest for digest, *_ in registry.stopped}
    revoked = [subject for action, subject, _ in await registry.audit() if action == "template.revoked"]
    assert revoked == ["base 1.0.0", "middle 1.0.0", "leaf 1.0.0"]


async def test_revoking_a_child_leaves_its_parent(registry, base):
    child = await publish(registry, child_of(base))
    await registry.templates.revoke(ADMIN, TemplateRef(digest=child.digest), reason="leaks")
    assert (await registry.catalog.get(TENANT, TemplateRef(digest=base.digest))).state is TemplateState.ACTIVE


@pytest.mark.parametrize("change", ["retire", "revoke"])
async def test_nothing_new_extends_a_closed_version(registry, base, change):
    manifest = child_of(base)
    if change == "retire":
        await registry.templates.retire(AUTHOR, TemplateRef(digest=base.digest))
    else:
        await registry.templates.revoke(ADMIN, TemplateRef(digest=base.digest), reason="leaks")
    with pytest.raises((TemplateRetiredError, TemplateRevokedError)):
        await publish(registry, manifest)
    assert await untouched(registry)


async def test_no_child_slips_past_a_revocation_that_runs_beside_it(registry, base):
    async def published(number):
        with suppress(TemplateRevokedError):
            await publish(registry, child_of(base, name=f"child-{number}"))

    await asyncio.gather(
        *(published(number) for number in range(6)),
        registry.templates.revoke(ADMIN, TemplateRef(digest=base.digest), reason="leaks"),
        *(published(number) for number in range(6, 12)),
    )
    assert await registry.rows("SELECT count(*) FROM template_versions WHERE state <> 'revoked'") == [(0,)]
