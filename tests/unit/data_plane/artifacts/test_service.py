"""From a template's digest to a module that may be loaded: every check, once per module, under today's keys."""

import asyncio
import os
from dataclasses import replace
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from data_plane.artifacts.cache import ArtifactCache
from data_plane.artifacts.ports import FetchedTemplate
from data_plane.artifacts.service import FAILURE_IS_REMEMBERED, ArtifactService
from data_plane.metrics import NodeMetrics
from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.verifier import Check
from shared.digests import sha256_digest
from shared.errors import (
    DiskFullError,
    ModuleInvalidError,
    OrderRejectedError,
    RejectionReason,
    UnavailableError,
    WorkerCrashedError,
)
from shared.ids import InstallationId
from shared.keyset import KeyPurpose, sign_keyset
from shared.manifest import Profile
from shared.packages import make_package, sign_package
from tests.fakes.clock import START, FakeClock
from tests.fakes.sandbox import FakeCompiler
from tests.fixtures.keys import rsa_key, signer
from tests.unit.data_plane.builders import ENGINE, ENGINES, order
from tests.unit.shared.builders import INSTALLATION, MODULE, a_keyset, a_manifest, an_entry

ROOT, PUBLISHER = rsa_key("root"), rsa_key("publisher")


class Source:
    """Implements `TemplateSource`."""

    def __init__(self) -> None:
        self.templates: dict[str, FetchedTemplate] = {}
        self.fetches = 0
        self.error: Exception | None = None

    async def fetch_template(self, attempt, template_digest) -> FetchedTemplate:
        self.fetches += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.templates[template_digest]


class World:
    def __init__(self, folder) -> None:
        self.folder = folder
        self.clock, self.source, self.compiler = FakeClock(), Source(), FakeCompiler(ENGINE)
        self.keyset = NodeKeyset(
            root_keys={ROOT.key_id: ROOT.public},
            installation=InstallationId(INSTALLATION),
            path=folder / "keyset.dsse",
        )
        self.restart()

    def restart(self) -> None:
        """Forget what is in memory, as a new process would."""
        self.cache = ArtifactCache(
            self.folder / "artifacts", mac_key=b"k" * 32, engines=ENGINES, bound_bytes=1 << 30
        )
        self.cache.load()
        self.service = ArtifactService(
            cache=self.cache,
            source=self.source,
            compiler=self.compiler,
            keyset=self.keyset,
            observer=NodeMetrics(CollectorRegistry(), self.clock),
            clock=self.clock,
        )

    async def trust(self, *, version=1, **changes) -> None:
        entry = an_entry(purpose=KeyPurpose.PUBLISHER, key=PUBLISHER.public, **changes)
        self.keyset.offer(await sign_keyset(a_keyset(ROOT, entry, version=version), [signer(ROOT)]))

    async def publish(self, *, key=PUBLISHER, module=MODULE, **changes):
        """Sign a template and return an order for it."""
        package = make_package(a_manifest(module, **changes), module)
        signed = await sign_package(package, [signer(key)])
        self.source.templates[package.digest] = FetchedTemplate(envelope=signed.envelope, module=module)
        return order(template_digest=package.digest, module_digest=sha256_digest(module))

    async def load(self, one) -> bytes:
        prepared = await self.service.prepare(one)
        descriptor = await prepared.open_artifact()
        try:
            return os.pread(descriptor, 1 << 20, 0)
        finally:
            os.close(descriptor)

    def replace(self, one, **changes) -> None:
        """Let the source answer something else for this order's template."""
        found = self.source.templates[one.template_digest]
        self.source.templates[one.template_digest] = replace(found, **changes)


@pytest.fixture
async def world(tmp_path) -> World:
    world = World(tmp_path)
    await world.trust()
    return world


async def refusal(world: World, one) -> tuple[Check, RejectionReason]:
    with pytest.raises(OrderRejectedError) as caught:
        await world.load(one)
    return caught.value.check, caught.value.rejection


async def test_module_is_fetched_verified_and_compiled(world):
    one = await world.publish()

    assert await world.load(one) == b"compiled:" + MODULE


async def test_second_use_fetches_and_compiles_nothing(world):
    one = await world.publish()
    await world.load(one)
    await world.load(one)

    assert (world.source.fetches, world.compiler.compilations) == (1, 1)


async def test_another_profile_is_compiled_for_itself(world):
    one = await world.publish()
    await world.load(one)
    await world.load(replace(one, profile=Profile.DETERMINISTIC))
    await world.load(replace(one, profile=Profile.DETERMINISTIC))

    assert world.compiler.profiles == [Profile.DEFAULT, Profile.DETERMINISTIC]


async def test_requests_at_once_share_one_fetch_and_one_compilation(world):
    one = await world.publish()

    await asyncio.gather(*(world.service.prepare(one) for _ in range(20)))

    assert (world.source.fetches, world.compiler.compilations) == (1, 1)


async def test_after_a_restart_the_disk_is_enough(world):
    one = await world.publish()
    await world.load(one)
    world.restart()

    assert await world.load(one) == b"compiled:" + MODULE
    assert (world.source.fetches, world.compiler.compilations) == (1, 1)


async def test_two_templates_of_one_module_share_its_artifact(world):
    first, second = await world.publish(), await world.publish(version="1.2.1")
    await world.load(first)
    await world.load(second)

    assert world.compiler.compilations == 1


async def test_unknown_publisher(world):
    one = await world.publish(key=rsa_key("stranger"))

    assert await refusal(world, one) == (Check.TEMPLATE, RejectionReason.TEMPLATE)
    assert world.compiler.compilations == 0


async def test_publisher_revoked_after_the_module_was_cached(world):
    one = await world.publish()
    await world.load(one)
    await world.trust(version=2, revoked_at=START)

    assert await refusal(world, one) == (Check.TEMPLATE, RejectionReason.TEMPLATE)


async def test_publisher_whose_key_has_expired_by_now(world):
    one = await world.publish()
    await world.load(one)
    world.clock.advance(timedelta(days=91))

    assert await refusal(world, one) == (Check.TEMPLATE, RejectionReason.TEMPLATE)


async def test_template_that_is_not_the_ordered_one(world):
    one, other = await world.publish(), await world.publish(version="6.6.6")
    world.replace(one, envelope=world.source.templates[other.template_digest].envelope)

    assert await refusal(world, one) == (Check.MODULE, RejectionReason.DIGEST)


async def test_altered_module(world):
    one = await world.publish()
    world.replace(one, module=MODULE[:-1] + b"!")

    assert await refusal(world, one) == (Check.MODULE, RejectionReason.DIGEST)
    assert world.compiler.compilations == 0


@pytest.mark.parametrize("envelope", [b"", b"{}", b"\xff" * 100, b"x" * 1_000_000])
async def test_envelope_that_is_none(world, envelope):
    one = await world.publish()
    world.replace(one, envelope=envelope)

    assert await refusal(world, one) == (Check.TEMPLATE, RejectionReason.TEMPLATE)


async def test_order_that_names_another_module_than_its_template(world):
    one = replace(await world.publish(), module_digest=sha256_digest(b"other"))

    assert await refusal(world, one) == (Check.MODULE, RejectionReason.DIGEST)


async def test_altered_envelope_on_the_disk_is_fetched_again(world):
    one = await world.publish()
    await world.load(one)
    (path,) = (world.folder / "artifacts").glob("*.envelope")
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    world.restart()

    assert await world.load(one) == b"compiled:" + MODULE
    assert world.source.fetches == 2


async def test_corrupted_artifact_is_dropped_and_compiled_again(world):
    one = await world.publish()
    await world.load(one)
    (path,) = (world.folder / "artifacts").glob("*.artifact")
    path.write_bytes(path.read_bytes()[:-1])

    assert await world.load(one) == b"compiled:" + MODULE
    assert world.compiler.compilations == 2


@pytest.mark.parametrize("error", [ModuleInvalidError("no _start"), WorkerCrashedError("memory")])
async def test_module_that_does_not_compile_is_refused_for_good(world, error):
    one = await world.publish()
    world.compiler.error = error

    assert await refusal(world, one) == (Check.MODULE, RejectionReason.ARTIFACT)


async def test_module_that_takes_the_compiler_down_is_not_compiled_for_each_order(world):
    first, second = await world.publish(), await world.publish(version="1.2.1")
    world.compiler.error = WorkerCrashedError("memory")

    for one in (first, first, second):
        assert await refusal(world, one) == (Check.MODULE, RejectionReason.ARTIFACT)
    assert (world.source.fetches, world.compiler.compilations) == (1, 1)

    world.compiler.error = None
    world.clock.advance(FAILURE_IS_REMEMBERED - timedelta(microseconds=1))
    await refusal(world, first)
    world.clock.advance(timedelta(microseconds=1))
    assert await world.load(first) == b"compiled:" + MODULE


async def test_full_disk_is_a_reason_of_this_node_alone(world, monkeypatch):
    one = await world.publish()

    async def full(*_args):
        raise DiskFullError("no space")

    monkeypatch.setattr(world.cache, "store", full)

    check, reason = await refusal(world, one)

    assert (check, reason) == (Check.MODULE, RejectionReason.BUSY)
    assert reason.concerns_node_alone


async def test_source_that_is_away_is_a_reason_of_this_node_alone(world):
    one = await world.publish()
    world.source.error = UnavailableError("gone")

    _, reason = await refusal(world, one)

    assert reason.concerns_node_alone


async def test_failed_fetch_is_tried_again_for_the_next_order(world):
    one = await world.publish()
    world.source.error = UnavailableError("gone")
    await refusal(world, one)
    world.source.error = None

    assert await world.load(one) == b"compiled:" + MODULE
