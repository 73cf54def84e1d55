"""Machine code from elsewhere: what a node takes, and what an attacker can make of every part of it."""

import asyncio
import errno
import fcntl
import os
from collections.abc import Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from data_plane.artifacts import elsewhere, reception
from data_plane.artifacts.cache import ArtifactCache
from data_plane.artifacts.elsewhere import CompiledElsewhere, target_of
from data_plane.artifacts.pieces import HeldPieces
from data_plane.artifacts.ports import CompiledOffer, FetchedTemplate
from data_plane.artifacts.service import ArtifactService
from data_plane.metrics import NodeMetrics
from data_plane.orders.keyset import NodeKeyset
from shared.compiled import (
    COMPILED_TYPE,
    PIECE_BYTES,
    CompiledStatement,
    Target,
    pack_piece,
    sign_compiled,
)
from shared.digests import Digest, sha256_digest
from shared.dsse import decode_envelope, encode_envelope, sign_envelope
from shared.errors import ArtifactInvalidError, NotFoundError, OrderRejectedError, UnavailableError
from shared.ids import InstallationId
from shared.keyset import KeyPurpose, sign_keyset
from shared.manifest import Profile
from shared.packages import make_package, sign_package
from shared.zstd import zstd
from tests.fakes.clock import FakeClock
from tests.fakes.sandbox import FakeCompiler
from tests.fixtures.keys import ed25519_key, rsa_key, signer
from tests.unit.data_plane.builders import ENGINE, ENGINES, order
from tests.unit.shared.builders import INSTALLATION, MODULE, a_keyset, a_manifest, an_entry

ROOT, PUBLISHER, COMPILER = rsa_key("root"), rsa_key("publisher"), ed25519_key("compiler")
CODE = b"machine code " + os.urandom(2 * PIECE_BYTES + 5)
HERE = b"compiled:" + MODULE


def pieces_of(code: bytes) -> list[bytes]:
    return [pack_piece(code[at : at + PIECE_BYTES]) for at in range(0, len(code), PIECE_BYTES)]


class ControlPlane:
    """Implements `TemplateSource` and `CompiledSource`: says whatever it is told to say."""

    def __init__(self) -> None:
        self.template: FetchedTemplate | None = None
        self.envelope = self.statement = b""
        self.pieces: list[bytes] = []
        self.ends_with: Exception | None = None
        self.fetches = self.asked = self.sent = 0
        self.targets: list[Target] = []
        self.named: list[frozenset[Digest]] = []
        """What nodes said that they hold, each time."""
        self.leaves_out: Callable[[frozenset[Digest]], Collection[int]] = self.what_is_held
        self.sends_also: frozenset[int] = frozenset()
        """Of what is left out."""

    async def fetch_template(self, attempt, template_digest) -> FetchedTemplate:
        self.fetches += 1
        return self.template

    @asynccontextmanager
    async def fetch_compiled(self, attempt, template_digest, target, held):
        self.asked += 1
        self.targets.append(target)
        self.named.append(frozenset(held))
        if not self.statement:
            raise NotFoundError("nothing is compiled")
        left_out = tuple(self.leaves_out(self.named[-1]))
        pieces = [
            piece
            for number, piece in enumerate(self.pieces)
            if number not in left_out or number in self.sends_also
        ]
        yield CompiledOffer(
            envelope=self.envelope,
            statement=self.statement,
            left_out=left_out,
            pieces=self._send(pieces),
        )

    def what_is_held(self, held: frozenset[Digest]) -> Collection[int]:
        return [number for number, piece in enumerate(self.pieces) if sha256_digest(piece) in held]

    async def _send(self, pieces):
        for piece in pieces:
            await asyncio.sleep(0)
            self.sent += 1
            yield piece
        if self.ends_with is not None:
            raise self.ends_with


class World:
    def __init__(self, folder) -> None:
        self.folder = folder
        self.clock, self.source, self.compiler = FakeClock(), ControlPlane(), FakeCompiler(ENGINE)
        self.keyset = NodeKeyset(
            root_keys={ROOT.key_id: ROOT.public},
            installation=InstallationId(INSTALLATION),
            path=folder / "keyset.dsse",
        )
        self.restart()

    def restart(self) -> None:
        """Forget what is in memory, as a new process would."""
        self.registry = CollectorRegistry()
        metrics, pieces = NodeMetrics(self.registry, self.clock), HeldPieces()
        taking = CompiledElsewhere(
            source=self.source, keyset=self.keyset, observer=metrics, pieces=pieces, clock=self.clock
        )
        self.cache = ArtifactCache(
            self.folder / "artifacts",
            mac_key=b"k" * 32,
            engines=ENGINES,
            bound_bytes=1 << 30,
            trusts=taking.trusts,
            pieces=pieces,
        )
        self.cache.load()
        self.service = ArtifactService(
            cache=self.cache,
            source=self.source,
            compiler=self.compiler,
            keyset=self.keyset,
            observer=metrics,
            clock=self.clock,
            elsewhere=taking,
        )

    async def trust(self, *entries, version: int) -> None:
        publisher = an_entry(purpose=KeyPurpose.PUBLISHER, key=PUBLISHER.public)
        keyset = a_keyset(ROOT, publisher, *entries, version=version)
        self.keyset.offer(await sign_keyset(keyset, [signer(ROOT)]))

    async def publish(self, module: bytes = MODULE):
        package = make_package(a_manifest(module), module)
        signed = await sign_package(package, [signer(PUBLISHER)])
        self.source.template = FetchedTemplate(envelope=signed.envelope, module=module)
        self.source.envelope = signed.envelope
        return order(template_digest=package.digest, module_digest=sha256_digest(module))

    def stated(self, **changes) -> CompiledStatement:
        statement = CompiledStatement(
            installation=InstallationId(INSTALLATION),
            module_digest=sha256_digest(MODULE),
            target=target_of(ENGINE),
            artifact_digest=sha256_digest(CODE),
            artifact_bytes=len(CODE),
            piece_digests=tuple(map(sha256_digest, pieces_of(CODE))),
            compiled_at=self.clock.now(),
        )
        return replace(statement, **changes)

    async def offer(self, *, key=COMPILER, code: bytes = CODE, **changes) -> None:
        self.source.statement = await sign_compiled(self.stated(**changes), signer(key))
        self.source.pieces = pieces_of(code)

    async def load(self, one) -> bytes:
        prepared = await self.service.prepare(one)
        descriptor = await prepared.open_artifact()
        try:
            return os.pread(descriptor, 1 << 26, 0)
        finally:
            os.close(descriptor)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"agentfactory_node_{name}_total", labels) or 0.0


def compiler_entry(**changes):
    return an_entry(purpose=KeyPurpose.COMPILER, key=COMPILER.public, **changes)


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    await world.trust(compiler_entry(), version=1)
    yield world
    await world.cache.settled()


async def test_what_a_compiler_key_vouches_for_is_loaded_without_compiling_or_fetching_the_module(world):
    one = await world.publish()
    await world.offer()

    assert await world.load(one) == CODE
    await world.cache.settled()
    assert await world.load(one) == CODE

    assert (world.compiler.compilations, world.source.fetches, world.source.asked) == (0, 0, 1)
    assert world.source.targets == [target_of(ENGINE)]
    assert world.count("new_modules", compiled="elsewhere") == 1
    assert (await world.service.prepare(one)).vouched_by == COMPILER.key_id


async def test_it_comes_back_from_the_disk_after_a_restart(world):
    one = await world.publish()
    await world.offer()
    await world.load(one)
    await world.cache.settled()

    world.restart()

    assert await world.load(one) == CODE
    assert (world.compiler.compilations, world.source.asked) == (0, 1)


async def test_what_nobody_compiled_is_compiled_here_and_counted_as_no_refusal(world):
    one = await world.publish()

    assert await world.load(one) == HERE

    assert world.count("new_modules", compiled="here") == 1
    assert world.registry.get_sample_value("agentfactory_node_refused_artifacts_total") is None


async def test_without_a_compiler_key_in_the_keyset_nobody_is_asked(tmp_path):
    world = World(tmp_path)
    await world.trust(version=1)
    one = await world.publish()
    await world.offer()

    assert await world.load(one) == HERE

    assert world.source.asked == 0


OTHER = sha256_digest(b"another module")
LIES = {
    "another module": {"module_digest": OTHER},
    "another installation": {"installation": InstallationId("other")},
    "other pieces": {"piece_digests": (OTHER,) * 3},
    "fewer pieces": {"piece_digests": tuple(map(sha256_digest, pieces_of(CODE)))[:2]},
    "fewer bytes": {"artifact_bytes": len(CODE) - 1},
    "more bytes": {"artifact_bytes": len(CODE) + 1},
    "another processor": {"target": replace(target_of(ENGINE), cpu_features="avx999")},
    "another engine": {"target": replace(target_of(ENGINE), engine_name="other")},
    "another engine version": {"target": replace(target_of(ENGINE), engine_version="0.0.0")},
    "another configuration": {"target": replace(target_of(ENGINE), config_digest=OTHER)},
    "another profile": {"target": replace(target_of(ENGINE), profile=Profile.DETERMINISTIC)},
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_statement_of_something_else_is_not_taken_even_by_the_right_key(world, lie):
    one = await world.publish()
    await world.offer(**LIES[lie])

    assert await world.load(one) == HERE

    assert world.count("new_modules", compiled="elsewhere") == 0
    assert sum(sample.value for sample in refusals(world)) == 1


def refusals(world):
    family = next(
        one for one in world.registry.collect() if one.name == "agentfactory_node_refused_artifacts"
    )
    return [sample for sample in family.samples if sample.name.endswith("_total")]


async def refused_for(world, one) -> str:
    assert await world.load(one) == HERE
    (sample,) = refusals(world)
    return sample.labels["reason"]


@pytest.mark.parametrize("key", [rsa_key("order"), PUBLISHER, ed25519_key("stranger"), ROOT])
async def test_the_word_of_another_kind_of_key_is_no_word(world, key):
    await world.trust(
        compiler_entry(), an_entry(purpose=KeyPurpose.ORDER, key=rsa_key("order").public), version=2
    )
    one = await world.publish()
    await world.offer(key=key)

    assert await refused_for(world, one) == "UNKNOWN_KEY"


async def test_the_word_of_a_revoked_key_is_refused_as_such(world):
    one = await world.publish()
    await world.offer()
    await world.trust(compiler_entry(revoked_at=world.clock.now()), compiler_two(), version=2)

    assert await refused_for(world, one) == "KEY_REVOKED"


def compiler_two():
    return an_entry(purpose=KeyPurpose.COMPILER, key=ed25519_key("compiler-2").public)


async def test_a_signature_over_other_bytes_is_refused(world):
    one = await world.publish()
    await world.offer()
    envelope = decode_envelope(world.source.statement)
    payload = envelope.payload.replace(sha256_digest(CODE).encode(), OTHER.encode())
    world.source.statement = encode_envelope(replace(envelope, payload=payload))

    assert await refused_for(world, one) == "SIGNATURE_INVALID"


async def test_a_statement_without_a_signature_is_refused(world):
    one = await world.publish()
    await world.offer()
    envelope = decode_envelope(world.source.statement)
    world.source.statement = encode_envelope(replace(envelope, signatures=()))

    assert await refused_for(world, one) == "UNSIGNED"


async def test_a_signed_payload_of_another_type_is_refused(world):
    one = await world.publish()
    await world.offer()
    payload = decode_envelope(world.source.statement).payload
    world.source.statement = await sign_envelope("application/x", payload, [signer(COMPILER)])

    assert await refused_for(world, one) == "PAYLOAD_TYPE"


async def test_a_signed_statement_with_an_unknown_field_is_refused(world):
    one = await world.publish()
    await world.offer()
    payload = decode_envelope(world.source.statement).payload
    payload = payload[:-1] + b',"zzz":1}'
    world.source.statement = await sign_envelope(COMPILED_TYPE, payload, [signer(COMPILER)])

    assert await refused_for(world, one) == "UNKNOWN_FIELD"


@pytest.mark.parametrize("garbage", [b"x", b"{}", b"[" * 5000, b"x" * 20_000])
async def test_garbage_in_place_of_a_statement_is_refused(world, garbage):
    one = await world.publish()
    await world.offer()
    world.source.statement = garbage

    assert await refused_for(world, one) == "MALFORMED"


async def test_altered_bytes_are_refused(world):
    one = await world.publish()
    await world.offer(code=CODE[:-1] + bytes([CODE[-1] ^ 1]))

    assert await refused_for(world, one) == "PACKAGE_ALTERED"


async def test_truncated_bytes_are_refused(world):
    one = await world.publish()
    await world.offer()
    world.source.pieces.pop()

    assert await refused_for(world, one) == "MALFORMED"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def only(files: int) -> bool:
    """Wait until no more are open: a thread lets go of its memory a moment after its work."""
    for _ in range(200):
        if open_files() <= files:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_source_that_breaks_off_leaves_nothing_behind(world):
    one = await world.publish()
    await world.offer()
    world.source.pieces.pop()
    world.source.ends_with = UnavailableError("gone")
    open_before = open_files()

    assert await refused_for(world, one) == "UNAVAILABLE"
    world.source.ends_with = None

    assert await only(open_before)


async def test_an_endless_stream_is_left_at_the_stated_size(world):
    one = await world.publish()
    await world.offer()
    world.source.pieces = world.source.pieces[:1] * 1000

    assert await refused_for(world, one) in {"PACKAGE_ALTERED", "MALFORMED"}

    assert world.source.sent <= 4


async def test_a_piece_that_unpacks_to_more_than_a_piece_is_refused(world):
    one = await world.publish()
    await world.offer()
    await world.offer(**of_one_piece(pack_piece(bytes(1 << 27))))
    world.source.pieces = [pack_piece(bytes(1 << 27))]

    assert await refused_for(world, one) in {"DECOMPRESSION_BOMB", "MALFORMED"}


def of_one_piece(packed: bytes):
    return {"artifact_bytes": PIECE_BYTES, "piece_digests": (sha256_digest(packed),)}


@pytest.mark.parametrize("packed", [b"no frame", pack_piece(b"x")[:-1], pack_piece(b"x") + b"y"])
async def test_a_piece_that_is_no_frame_is_refused_whoever_signed_it(world, packed):
    one = await world.publish()
    await world.offer(**of_one_piece(packed) | {"artifact_bytes": 1})
    world.source.pieces = [packed]

    assert await refused_for(world, one) == "MALFORMED"


async def test_a_piece_too_many_is_refused(world):
    one = await world.publish()
    await world.offer()
    world.source.pieces += world.source.pieces[:1] * 1000

    assert await refused_for(world, one) == "MALFORMED"
    assert world.source.sent == 4


async def test_what_is_not_of_its_stated_digest_is_not_kept(world):
    """Its pieces are vouched for, so it ran; a seal is of what this node has hashed."""
    one = await world.publish()
    await world.offer(artifact_digest=OTHER)

    await world.load(one)
    await world.cache.settled()

    assert not world.cache.holds(one.module_digest)


async def test_nothing_is_received_before_its_statement_has_verified(world):
    one = await world.publish()
    await world.offer(module_digest=OTHER)

    await world.load(one)

    assert world.source.sent == 0


async def test_the_envelope_of_another_template_is_refused(world):
    one = await world.publish()
    await world.offer()
    other = make_package(a_manifest(MODULE, version="9.9.9"), MODULE)
    world.source.envelope = (await sign_package(other, [signer(PUBLISHER)])).envelope

    assert await refused_for(world, one) == "PACKAGE_ALTERED"


async def test_a_template_of_an_untrusted_publisher_is_refused(world):
    one = await world.publish()
    await world.offer()
    package = make_package(a_manifest(MODULE), MODULE)
    world.source.envelope = (await sign_package(package, [signer(rsa_key("stranger"))])).envelope

    assert await world.load(one) == HERE
    assert world.count("new_modules", compiled="elsewhere") == 0


@pytest.mark.parametrize("after", ["at once", "on the disk", "a restart"])
@pytest.mark.parametrize("how", ["revoked", "forgotten", "ended", "of another purpose"])
async def test_what_was_taken_on_the_word_of_a_key_is_not_loaded_when_that_counts_no_more(world, how, after):
    one = await world.publish()
    await world.offer()
    prepared = await world.service.prepare(one)
    if after != "at once":
        await world.cache.settled()
    now = world.clock.now()
    entries = {
        "revoked": lambda: [compiler_entry(revoked_at=now)],
        "forgotten": list,
        "of another purpose": lambda: [an_entry(purpose=KeyPurpose.POLICY, key=COMPILER.public)],
        "ended": lambda: [compiler_entry(not_before=now - timedelta(days=1), not_after=now)],
    }
    await world.trust(*entries[how](), version=2)
    if after == "a restart":
        world.restart()

    assert await world.load(one) == HERE
    assert (await world.service.prepare(one)).vouched_by == ""
    descriptor = await prepared.open_artifact()
    assert os.pread(descriptor, len(HERE), 0) == HERE
    os.close(descriptor)


async def test_a_node_that_takes_it_no_more_loads_none_of_what_it_took(world):
    one = await world.publish()
    await world.offer()
    await world.load(one)
    await world.cache.settled()

    cache = ArtifactCache(world.folder / "artifacts", mac_key=b"k" * 32, engines=ENGINES, bound_bytes=1 << 30)
    cache.load()

    assert not cache.holds(one.module_digest)
    assert not list((world.folder / "artifacts").glob("*.artifact"))


async def test_a_seal_whose_voucher_was_rewritten_is_no_seal(world):
    one = await world.publish()
    await world.offer()
    await world.load(one)
    await world.cache.settled()
    (path,) = (world.folder / "artifacts").glob("*.artifact")
    other = ed25519_key("compiler-2").key_id
    path.write_bytes(path.read_bytes().replace(COMPILER.key_id.encode(), other.encode()))
    await world.trust(compiler_entry(revoked_at=world.clock.now()), compiler_two(), version=2)
    world.restart()

    with pytest.raises(ArtifactInvalidError, match="not sealed"):
        await world.cache.open(one.module_digest, vouched_by=other)


async def test_an_opener_gets_no_code_on_the_word_of_a_key_that_its_worker_is_not_marked_with(world):
    """A worker that counts as loaded on this node's own word is not retired with a compiler key."""
    one = await world.publish()
    prepared = await world.service.prepare(one)
    assert prepared.vouched_by == ""
    world.cache.drop(one.module_digest, one.profile)
    await world.offer()

    descriptor = await prepared.open_artifact()

    assert os.pread(descriptor, len(HERE), 0) == HERE
    os.close(descriptor)


async def test_several_orders_at_once_fetch_it_once(world):
    one = await world.publish()
    await world.offer()

    loaded = await asyncio.gather(*(world.load(one) for _ in range(5)))

    assert set(loaded) == {CODE}
    assert world.source.asked == 1


async def test_a_full_disk_does_not_keep_a_received_module_from_running(world, monkeypatch):
    one = await world.publish()
    await world.offer()
    monkeypatch.setattr(world.cache, "_bound_bytes", 10_000)

    assert await world.load(one) == CODE
    await world.cache.settled()
    assert not world.cache.holds(one.module_digest)


async def test_a_full_disk_that_says_so_at_once_is_not_faster_than_the_run(world, monkeypatch):
    """The envelope takes its time; what cannot be kept is there when its run asks for it all the same."""
    one = await world.publish()
    await world.offer()
    monkeypatch.setattr(world.cache, "_bound_bytes", 10_000)
    stored = world.cache.store_envelope

    async def slowly(*envelope):
        await stored(*envelope)
        await world.cache.settled()

    monkeypatch.setattr(world.cache, "store_envelope", slowly)

    assert await world.load(one) == CODE


async def test_an_envelope_that_finds_no_room_leaves_nothing_open(world, monkeypatch):
    one = await world.publish()
    await world.offer()
    monkeypatch.setattr(world.cache, "_bound_bytes", 10)
    open_before = open_files()

    with pytest.raises(OrderRejectedError, match="DISK_FULL"):
        await world.service.prepare(one)

    assert await only(open_before)


async def test_a_key_that_is_not_valid_yet_does_not_count(world):
    later = world.clock.now() + timedelta(hours=1)
    await world.trust(compiler_entry(not_before=later, not_after=later + timedelta(days=1)), version=2)
    one = await world.publish()
    await world.offer()

    assert await world.load(one) == HERE
    assert world.source.asked == 0


async def test_what_does_not_load_is_compiled_here_and_not_taken_again(world):
    """A compiling node whose code no worker loads must not keep a module from running on every node."""
    one = await world.publish()
    await world.offer()
    prepared = await world.service.prepare(one)
    await world.cache.settled()

    world.service.forget(one.module_digest, one.profile, vouched_by=prepared.vouched_by)
    descriptor = await prepared.open_artifact()

    assert os.pread(descriptor, len(HERE), 0) == HERE
    os.close(descriptor)
    world.service.forget(one.module_digest, one.profile, vouched_by="")
    assert await world.load(one) == HERE
    assert world.source.asked == 1
    assert [sample.labels["reason"] for sample in refusals(world)] == ["ARTIFACT_INVALID"]


async def test_nobody_can_change_what_was_received(world):
    one = await world.publish()
    await world.offer()
    descriptor = await (await world.service.prepare(one)).open_artifact()

    seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    os.close(descriptor)

    assert seals == fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


async def test_a_machine_without_memory_for_it_compiles_the_module(world, monkeypatch):
    one = await world.publish()
    await world.offer()

    class NoMemory:
        def __init__(self) -> None:
            raise OSError(errno.ENFILE, "too many open files")

    monkeypatch.setattr(reception, "_Memory", NoMemory)

    assert await refused_for(world, one) == "UNAVAILABLE"


async def test_a_statement_of_another_version_is_refused(world):
    one = await world.publish()
    await world.offer()
    payload = decode_envelope(world.source.statement).payload.replace(b"compiled.v1", b"compiled.v2")
    world.source.statement = await sign_envelope(COMPILED_TYPE, payload, [signer(COMPILER)])

    assert await refused_for(world, one) == "UNSUPPORTED_VERSION"


async def test_a_piece_that_wants_more_memory_than_a_piece_needs_is_refused(world):
    one = await world.publish()
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    packed = compressor.compress(CODE[:8]) + compressor.flush()
    await world.offer(artifact_bytes=8, piece_digests=(sha256_digest(packed),))
    world.source.pieces = [packed]

    assert await refused_for(world, one) == "MALFORMED"


async def test_an_order_of_another_module_than_its_templates_brings_no_code(world):
    one = await world.publish()
    await world.offer(module_digest=OTHER)

    with pytest.raises(OrderRejectedError):
        await world.service.prepare(replace(one, module_digest=OTHER))

    assert world.source.sent == 0
    assert not world.cache.holds(OTHER, one.profile)


async def test_only_some_artifacts_are_in_memory_at_once(world):
    one = await world.publish()
    await world.offer()
    within, most = 0, 0
    fetch = world.source.fetch_compiled

    @asynccontextmanager
    async def counted(*asked):
        nonlocal within, most
        within += 1
        most = max(most, within)
        try:
            async with fetch(*asked) as offer:
                yield offer
        finally:
            within -= 1

    world.source.fetch_compiled = counted
    taking = CompiledElsewhere(
        source=world.source,
        keyset=world.keyset,
        observer=NodeMetrics(CollectorRegistry(), world.clock),
        pieces=HeldPieces(),
        clock=world.clock,
    )
    for found in await asyncio.gather(*(taking.obtain(one, ENGINE) for _ in range(5))):
        os.close(found.artifact.descriptor)

    assert most == elsewhere.MAX_RECEPTIONS


async def test_a_reception_that_is_cancelled_leaves_nothing_behind(world):
    one = await world.publish()
    await world.offer()
    before, tasks = open_files(), asyncio.all_tasks()
    world.source.pieces = world.source.pieces[:2]
    never = asyncio.Event()
    send = world.source._send

    async def stops(pieces):
        async for piece in send(pieces):
            yield piece
        await never.wait()

    world.source._send = stops
    taking = asyncio.create_task(world.service.prepare(one))
    async with asyncio.timeout(30):
        while world.source.sent < 2:
            await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert asyncio.all_tasks() == tasks
    await asyncio.get_running_loop().shutdown_default_executor()

    assert open_files() <= before
