"""Publishing as an attacker and as an author: what is stored, what is refused, and what is recorded."""

import asyncio
import json

import pytest

from control_plane.templates.domain import TemplateRef, TemplateState
from shared.errors import (
    AlreadyExistsError,
    InvalidInputError,
    ManifestInvalidError,
    ModuleInvalidError,
    NotFoundError,
    PackageAlteredError,
    PackageTruncatedError,
    PolicyDeniedError,
    SignatureInvalidError,
    TemplateRevokedError,
    UnknownPublisherError,
    UnsignedError,
)
from shared.ids import TenantId
from shared.manifest import Capabilities, HttpCapability
from shared.packages import SignedPackage
from tests.fixtures.keys import rsa_key
from tests.integration.control_plane.registry import ADMIN, AUTHOR, CALLER, MODULE, PUBLISHER, TENANT, package

REF = TemplateRef(name="probe", version="1.0.0")


async def test_a_signed_package_is_stored_exactly_as_it_was_signed(registry):
    signed = await package()
    stored = await registry.publish(signed)
    assert (stored.name, stored.version, stored.state) == ("probe", "1.0.0", TemplateState.ACTIVE)
    assert (stored.publisher_key_id, stored.published_by) == (PUBLISHER.key_id, AUTHOR.identity)
    assert stored == await registry.catalog.get(TENANT, TemplateRef(digest=stored.digest))
    assert await registry.catalog.envelope(TENANT, stored.digest) == signed.envelope
    assert (
        await registry.catalog.module(stored.module_digest, offset_bytes=0, max_bytes=len(MODULE) + 1)
        == MODULE
    )


async def test_publishing_is_recorded_with_its_decision(registry):
    await registry.publish(await package())
    assert await registry.audit() == [("template.published", "probe 1.0.0", "ok")]
    assert await registry.rows("SELECT question, allowed FROM decisions") == [("publish_template", True)]


async def test_the_same_bytes_again_return_what_is_stored_and_record_nothing(registry):
    signed = await package()
    first = await registry.publish(signed)
    assert await registry.publish(signed) == first
    assert len(await registry.audit()) == 1


async def test_the_same_bytes_twice_at_once_are_stored_once(registry):
    signed = await package()
    answers = await asyncio.gather(*(registry.publish(signed) for _ in range(4)))
    assert len({answer.template_version_id for answer in answers}) == 1
    assert await registry.rows("SELECT count(*) FROM template_versions") == [(1,)]


async def test_other_bytes_under_a_published_version_are_refused(registry):
    await registry.publish(await package())
    other = await package(capabilities=None, module=MODULE + custom_section())
    with pytest.raises(AlreadyExistsError):
        await registry.publish(other)


def custom_section() -> bytes:
    """Return a custom section: the module stays valid and has another digest."""
    return b"\x00\x02\x01x"


def unsigned(signed: SignedPackage) -> bytes:
    return json.dumps(json.loads(signed.envelope) | {"signatures": []}).encode()


def resigned(signed: SignedPackage) -> bytes:
    """Return the envelope with one bit of its signature turned."""
    document = json.loads(signed.envelope)
    first = document["signatures"][0]
    first["sig"] = ("A" if first["sig"][0] != "A" else "B") + first["sig"][1:]
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("attack", "error"),
    [
        (lambda signed: (unsigned(signed), MODULE), UnsignedError),
        (lambda signed: (resigned(signed), MODULE), SignatureInvalidError),
        (lambda signed: (signed.envelope[:-20], MODULE), PackageTruncatedError),
        (lambda signed: (signed.envelope, MODULE[:-1]), PackageTruncatedError),
        (lambda signed: (signed.envelope, b""), PackageTruncatedError),
        (lambda signed: (signed.envelope, MODULE + b"\x00"), PackageAlteredError),
        (lambda signed: (signed.envelope, MODULE[:-1] + bytes([MODULE[-1] ^ 1])), PackageAlteredError),
    ],
    ids=["unsigned", "forged", "cut envelope", "cut module", "no module", "longer module", "altered module"],
)
async def test_an_attacked_package_is_refused_and_nothing_is_stored(registry, attack, error):
    signed = await package()
    envelope, module = attack(signed)
    with pytest.raises(error):
        await registry.publish(SignedPackage(envelope=envelope, blobs=signed.blobs), module=module)
    assert await registry.rows("SELECT 1 FROM template_versions UNION SELECT 1 FROM artifacts") == []


async def test_a_publisher_that_nobody_trusts_is_refused_before_a_byte_of_the_module_is_read(registry):
    signed = await package(key=rsa_key("stranger"))

    async def chunks():
        raise AssertionError("the module was asked for")
        yield b""

    with pytest.raises(UnknownPublisherError):
        await registry.templates.publish(AUTHOR, signed.envelope, chunks())


@pytest.mark.parametrize("module", [b"\x00asm\x01\x00\x00\x00", b"\x00asm garbage"], ids=["empty", "garbage"])
async def test_a_signed_module_that_is_no_agent_is_refused(registry, module):
    with pytest.raises(ModuleInvalidError):
        await registry.publish(await package(module=module))


async def test_a_capability_that_policy_does_not_allow_is_denied_and_recorded(registry):
    wanted = Capabilities(http=(HttpCapability(method="GET", url="https://a.test/"),))
    with pytest.raises(PolicyDeniedError, match="CAPABILITY_NOT_ALLOWED"):
        await registry.publish(await package(capabilities=wanted))
    assert await registry.audit() == [("template.denied", "probe 1.0.0", "POLICY_DENIED")]
    assert await registry.rows("SELECT allowed, reason FROM decisions") == [(False, "CAPABILITY_NOT_ALLOWED")]


async def test_a_destination_that_no_call_matches_is_refused_before_a_byte_of_the_module_is_read(registry):
    wanted = Capabilities(http=(HttpCapability(method="GET", url="https://0x7f.1/"),))
    signed = await package(capabilities=wanted)

    async def chunks():
        raise AssertionError("the module was asked for")
        yield b""

    with pytest.raises(ManifestInvalidError, match="no dotted IPv4 address"):
        await registry.templates.publish(AUTHOR, signed.envelope, chunks())


async def test_policy_asks_for_the_role_again_behind_the_rules_table(registry):
    with pytest.raises(PolicyDeniedError, match="ROLE_NOT_ALLOWED"):
        await registry.publish(await package(), CALLER)


async def test_a_retired_version_stays_readable_and_retiring_again_changes_nothing(registry):
    await registry.publish(await package())
    assert (await registry.templates.retire(AUTHOR, REF)).state is TemplateState.RETIRED
    assert (await registry.templates.retire(AUTHOR, REF)).state is TemplateState.RETIRED
    assert [action for action, _, _ in await registry.audit()] == ["template.published", "template.retired"]
    assert await registry.catalog.envelope(TENANT, (await registry.catalog.get(TENANT, REF)).digest)


async def test_rule_7_revoking_stops_what_runs_and_hands_nothing_to_nodes(registry):
    version = await registry.publish(await package())
    revoked = await registry.templates.revoke(ADMIN, REF, reason="leaks")
    assert revoked.state is TemplateState.REVOKED
    assert registry.stopped == [(version.digest, "TEMPLATE_REVOKED", ADMIN.identity)]
    with pytest.raises(TemplateRevokedError):
        await registry.catalog.envelope(TENANT, version.digest)


async def test_a_revoked_version_never_becomes_a_retired_one(registry):
    await registry.publish(await package())
    await registry.templates.revoke(ADMIN, REF, reason="leaks")
    assert (await registry.templates.retire(AUTHOR, REF)).state is TemplateState.REVOKED


async def test_a_list_is_paged_newest_first(registry):
    for number in range(5):
        await registry.publish(await package(version=f"1.0.{number}"))
    seen, token = [], ""
    while True:
        page = await registry.catalog.list(TENANT, name="", page_size=2, page_token=token)
        seen += [version.version for version in page.versions]
        assert all(version.envelope == b"" for version in page.versions)
        token = page.next_page_token
        if not token:
            break
    assert sorted(seen, reverse=True) == seen == [f"1.0.{number}" for number in (4, 3, 2, 1, 0)]


async def test_a_made_up_page_token_is_refused(registry):
    for token in ("x", "AAAA", "dHBsXzE"):
        with pytest.raises(InvalidInputError):
            await registry.catalog.list(TENANT, name="", page_size=2, page_token=token)


async def test_another_tenant_sees_nothing(registry):
    version = await registry.publish(await package())
    for ref in (REF, TemplateRef(digest=version.digest)):
        with pytest.raises(NotFoundError):
            await registry.catalog.get(TenantId("other"), ref)
    page = await registry.catalog.list(TenantId("other"), name="", page_size=0, page_token="")
    assert page.versions == ()


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"name": "a"},
        {"version": "1.0.0"},
        {"channel": "stable"},
        {"name": "a", "version": "1.0.0", "digest": "d"},
        {"name": "a", "version": "1.0.0", "channel": "stable"},
        {"name": "a", "digest": "d"},
        {"digest": "d", "channel": "stable"},
    ],
)
def test_a_template_is_named_in_one_way(parts):
    with pytest.raises(InvalidInputError):
        TemplateRef(**parts)
