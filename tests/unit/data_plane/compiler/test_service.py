"""A compiling node: what it compiles, what it states, and what a control plane cannot make it do."""

import mmap
import os

import pytest
from prometheus_client import CollectorRegistry

from data_plane.artifacts.elsewhere import target_of
from data_plane.artifacts.ports import FetchedTemplate
from data_plane.compiler.keys import ensure_compiler_key
from data_plane.compiler.metrics import CompilerMetrics
from data_plane.compiler.ports import Compilation, Listing
from data_plane.compiler.service import FAILURE_IS_REMEMBERED, CompileService
from data_plane.orders.keyset import NodeKeyset
from shared.compiled import PIECE_BYTES, unpack_piece, verify_compiled
from shared.digests import sha256_digest
from shared.errors import (
    KeyFileModeError,
    KeyRevokedError,
    ModuleInvalidError,
    RollbackError,
    UnavailableError,
    UnknownKeyError,
)
from shared.ids import InstallationId
from shared.keyset import KeyPurpose, sign_keyset
from shared.manifest import Profile
from shared.packages import make_package, sign_package
from tests.fakes.clock import FakeClock
from tests.fakes.sandbox import FakeCompiler
from tests.fixtures.keys import ed25519_key, rsa_key, signer
from tests.unit.data_plane.builders import ENGINE, ENGINES
from tests.unit.shared.builders import INSTALLATION, a_keyset, a_manifest, an_entry

ROOT, PUBLISHER, COMPILER = rsa_key("root"), rsa_key("publisher"), ed25519_key("compiler")
MODULE = b"\0asm" + os.urandom(PIECE_BYTES - 4)
CODE = b"compiled:" + MODULE


class Desk:
    """Implements `CompileDesk`: says whatever it is told to say."""

    def __init__(self) -> None:
        self.keyset = b""
        self.pages: list[list[Compilation]] = []
        self.templates: dict[str, FetchedTemplate] = {}
        self.handed_in: list[tuple[bytes, list[bytes]]] = []
        self.error: Exception | None = None

    async def list(self, targets, page_token):
        number = int(page_token or 0)
        page = self.pages[number] if number < len(self.pages) else []
        following = str(number + 1) if number + 1 < len(self.pages) else ""
        return Listing(compilations=tuple(page), next_page_token=following, keyset=self.keyset)

    async def fetch(self, template_digest):
        return self.templates[template_digest]

    async def hand_in(self, statement, pieces):
        if self.error is not None:
            raise self.error
        self.handed_in.append((statement, [piece async for piece in pieces]))
        return True


class World:
    def __init__(self, folder) -> None:
        self.desk, self.compiler, self.clock = Desk(), FakeCompiler(ENGINE), FakeClock()
        self.registry = CollectorRegistry()
        self.keyset = NodeKeyset(
            root_keys={ROOT.key_id: ROOT.public},
            installation=InstallationId(INSTALLATION),
            path=folder / "keyset.dsse",
        )
        self.service = CompileService(
            desk=self.desk,
            compiler=self.compiler,
            engines=ENGINES,
            keyset=self.keyset,
            signer=signer(COMPILER),
            public=COMPILER.public,
            metrics=CompilerMetrics(self.registry),
            clock=self.clock,
        )

    async def trust(self, *, version=1, **compiler) -> None:
        keyset = a_keyset(
            ROOT,
            an_entry(purpose=KeyPurpose.PUBLISHER, key=PUBLISHER.public),
            an_entry(purpose=KeyPurpose.COMPILER, key=COMPILER.public, **compiler),
            version=version,
        )
        self.desk.keyset = await sign_keyset(keyset, [signer(ROOT)])

    async def publish(self, *, key=PUBLISHER, module=MODULE, profile=Profile.DEFAULT) -> Compilation:
        package = make_package(a_manifest(module), module)
        signed = await sign_package(package, [signer(key)])
        self.desk.templates[package.digest] = FetchedTemplate(envelope=signed.envelope, module=module)
        one = Compilation(
            template_digest=package.digest, module_digest=sha256_digest(module), profile=profile
        )
        self.desk.pages.append([one])
        return one

    def failures(self, reason: str) -> float:
        return (
            self.registry.get_sample_value("agentfactory_compiler_failures_total", {"reason": reason}) or 0.0
        )


@pytest.fixture
async def world(tmp_path) -> World:
    world = World(tmp_path)
    await world.trust()
    return world


async def test_it_states_what_it_made_of_what_a_publisher_signed(world):
    one = await world.publish()

    assert await world.service.look() is True

    ((envelope, pieces),) = world.desk.handed_in
    keys = {COMPILER.key_id: COMPILER.public}
    stated = verify_compiled(envelope, keys=keys, installation=INSTALLATION).statement
    assert (stated.module_digest, stated.target) == (one.module_digest, target_of(ENGINE))
    assert (stated.artifact_digest, stated.artifact_bytes) == (sha256_digest(CODE), len(CODE))
    assert stated.piece_digests == tuple(map(sha256_digest, pieces))
    assert b"".join(map(unpack_piece, pieces)) == CODE


async def test_nothing_to_do_is_no_work(world):
    assert await world.service.look() is False
    assert world.compiler.compilations == 0


async def test_a_module_that_no_publisher_signed_is_not_compiled(world):
    await world.publish(key=rsa_key("stranger"))

    await world.service.look()

    assert (world.compiler.compilations, world.desk.handed_in) == (0, [])
    assert world.failures("UNKNOWN_PUBLISHER") == 1


async def test_another_module_than_the_signed_one_is_not_compiled(world):
    one = await world.publish()
    found = world.desk.templates[one.template_digest]
    world.desk.templates[one.template_digest] = FetchedTemplate(envelope=found.envelope, module=b"\0asm!")

    await world.service.look()

    assert (world.compiler.compilations, world.desk.handed_in) == (0, [])


async def test_a_listing_of_another_module_than_its_templates_gets_no_statement(world):
    one = await world.publish()
    other = await world.publish(module=b"\0asm other")
    lie = Compilation(
        template_digest=one.template_digest, module_digest=other.module_digest, profile=one.profile
    )
    world.desk.pages = [[lie]]

    await world.service.look()

    assert (world.compiler.compilations, world.desk.handed_in) == (0, [])
    assert world.failures("PACKAGE_ALTERED") == 1


async def test_another_template_than_the_listed_one_is_not_compiled(world):
    """Of the same module even: what was listed is what policy was asked about."""
    one = await world.publish()
    package = make_package(a_manifest(MODULE, version="9.9.9"), MODULE)
    signed = await sign_package(package, [signer(PUBLISHER)])
    world.desk.templates[one.template_digest] = FetchedTemplate(envelope=signed.envelope, module=MODULE)

    await world.service.look()

    assert (world.compiler.compilations, world.desk.handed_in) == (0, [])
    assert world.failures("PACKAGE_ALTERED") == 1


async def test_without_its_key_in_the_keyset_nothing_is_compiled(world):
    await world.publish()
    await world.trust(version=2, revoked_at=world.clock.now())
    with pytest.raises(KeyRevokedError):
        await world.service.look()

    world.desk.keyset = await sign_keyset(a_keyset(ROOT, version=3), [signer(ROOT)])
    with pytest.raises(UnknownKeyError):
        await world.service.look()
    assert world.compiler.compilations == 0


async def test_an_older_keyset_is_refused(world):
    await world.trust(version=2)
    await world.service.look()
    await world.trust(version=1)
    with pytest.raises(RollbackError):
        await world.service.look()


async def test_a_module_that_does_not_compile_keeps_nobody_else_waiting_and_is_tried_again_later(world):
    bad = await world.publish()
    world.compiler.error = ModuleInvalidError("no module")
    await world.service.look()
    world.compiler.error = None
    good = await world.publish(module=b"\0asm good")

    assert await world.service.look() is True
    world.desk.pages = [[bad]]
    assert await world.service.look() is False
    world.clock.advance(FAILURE_IS_REMEMBERED)
    assert await world.service.look() is True

    keys = {COMPILER.key_id: COMPILER.public}
    made = [
        verify_compiled(envelope, keys=keys, installation=INSTALLATION).statement.module_digest
        for envelope, _ in world.desk.handed_in
    ]
    assert made == [good.module_digest, bad.module_digest]


async def test_a_control_plane_that_goes_away_is_not_the_modules_fault(world):
    await world.publish()
    world.desk.error = UnavailableError("away")
    with pytest.raises(UnavailableError):
        await world.service.look()
    world.desk.error = None
    assert await world.service.look() is True
    assert len(world.desk.handed_in) == 1


async def test_a_worker_that_keeps_what_it_made_gets_no_statement_and_ends_nothing_else(world):
    """Whoever holds a writable mapping of the code could change it after it was hashed."""
    one = await world.publish()
    mappings = []

    async def keeps(**given):
        made = await FakeCompiler.compile(world.compiler, **given)
        mappings.append(mmap.mmap(given["artifact_fd"], 0))
        return made

    world.compiler.compile = keeps

    assert await world.service.look() is True

    assert world.desk.handed_in == []
    assert world.failures("RESOURCE_EXHAUSTED") == 1
    mappings.pop().close()
    assert await world.service.look() is False, one


def test_its_key_is_made_once_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "compiler.key"

    made = ensure_compiler_key(path)

    assert ensure_compiler_key(path).key_id == made.key_id
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(KeyFileModeError):
        ensure_compiler_key(path)
