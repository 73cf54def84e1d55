"""Opens sessions: decides from a node's first message whether it gets one. Serves nothing.

Every refusal is a typed error and an audit entry.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, NoReturn

import structlog
from agentfactory.v1 import nodes_pb2

from control_plane.audit.domain import NewAuditEntry, node_actor
from control_plane.dispatch.fleet import Fleet
from control_plane.dispatch.leases import count_ended
from control_plane.dispatch.options import MAX_CLOCK_SKEW, DispatchOptions
from control_plane.dispatch.orders import ORDER_TYPES
from control_plane.dispatch.ports import Engines, Keysets, Observer
from control_plane.dispatch.session import LiveSession
from control_plane.engines.domain import EngineDenial
from control_plane.executions.ports import LeaseStore
from control_plane.nodes.domain import (
    ChainState,
    EngineInfo,
    Node,
    NodeState,
    SandboxLayer,
    SpoolHead,
    compare_heads,
)
from control_plane.nodes.ports import NodeStore, SessionOpening
from shared.clock import Clock, Random
from shared.digests import Digest, parse_digest
from shared.errors import (
    AgentFactoryError,
    ClockSkewError,
    DeadlineExceededError,
    EngineDeniedError,
    InvalidInputError,
    NodeEvictedError,
    PermissionDeniedError,
    ReceiptConflictError,
    SignatureInvalidError,
    UnauthenticatedError,
    UnsupportedVersionError,
)
from shared.freshness import FORMAT as FRESHNESS_FORMAT
from shared.ids import AUDIT_ENTRY, BOOT, BootId, NodeId, new_id, parse_id
from shared.manifest import Profile
from shared.order_codec import PROFILES_BY_NUMBER
from shared.signatures import PublicKey

OPENINGS_AT_ONCE: Final = 4
"""Of those that use the database: when a thousand nodes come back at once, callers need connections too."""

logger = structlog.get_logger(__name__)


class SessionOpener:
    """Turns a Hello into a live session of the fleet."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        nodes: NodeStore,
        leases: LeaseStore,
        keysets: Keysets,
        engines: Engines,
        options: DispatchOptions,
        clock: Clock,
        random: Random,
        observer: Observer,
    ) -> None:
        self._fleet = fleet
        self._nodes = nodes
        self._leases = leases
        self._keysets = keysets
        self._engines = engines
        self._options = options
        self._clock = clock
        self._random = random
        self._observer = observer
        self._room = asyncio.Semaphore(OPENINGS_AT_ONCE)

    async def open(
        self, requests: AsyncIterator[nodes_pb2.SessionRequest], *, node_id: NodeId
    ) -> LiveSession:
        """Read the Hello, check it, record the session, welcome the node and take it into the fleet.

        1. The certificate's node is known and neither quarantined nor evicted.
        2. The first message comes within its deadline and is a well-formed Hello.
        3. It names the node of the certificate.
        4. The node's clock is at most 30 s off (rule 9); else it is refused with an alert.
        5. Its engine is not denied, and there is a common type of order (rule 11).
        6. Its spool head is signed by its receipt key.
        7. Its receipt chain continues the accepted one (rule 5): a conflict quarantines the node, a lost
           spool ends its identity.

        Raises:
            AgentFactoryError: A check failed; the class says which kind.
        """
        async with self._room:
            node = await self._nodes.find(node_id)
        if node is None:
            raise UnauthenticatedError(f"check 1: node {node_id} is not enrolled here")
        try:
            node.require_trusted()
            hello = await self._hello(requests)
            order_type = self._check(node, hello)
            async with self._room:
                await self._check_engine(node, hello)
        except AgentFactoryError as error:
            async with self._room:
                await self._refuse(node, error)
        async with self._room:
            session = await self._record(node, hello, order_type)
            await self._welcome(node, session)
        return session

    async def _hello(self, requests: AsyncIterator[nodes_pb2.SessionRequest]) -> nodes_pb2.Hello:
        try:
            async with asyncio.timeout(self._options.hello_deadline.total_seconds()):
                first = await anext(requests)
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"check 2: no hello within {self._options.hello_deadline.total_seconds():g} s"
            ) from error
        except StopAsyncIteration as error:
            raise InvalidInputError("check 2: the stream ended before a hello") from error
        if first.WhichOneof("message") != "hello":
            raise InvalidInputError("check 2: the first message of a session must be a hello")
        return first.hello

    def _check(self, node: Node, hello: nodes_pb2.Hello) -> str:
        boot_id = parse_id(BOOT, hello.boot_id)
        profiles_of(hello)
        for digest in hello.cached_digests:  # before a session is opened, which would end the node's own
            parse_digest(digest)
        if hello.slots < 1:
            raise InvalidInputError("check 2: a node has at least one slot")
        if hello.node_id != node.node_id:
            raise PermissionDeniedError(
                f"check 3: hello names node {hello.node_id[:64]!r}, the certificate {node.node_id}"
            )
        self._check_clock(node, hello)
        order_type = common_order_type(tuple(hello.accepts))
        check_head(node, boot_id, head_of(hello.spool_head), self._observer)
        return order_type

    def _check_clock(self, node: Node, hello: nodes_pb2.Hello) -> None:
        theirs = _datetime(hello.now.seconds, hello.now.nanos)
        skew = abs(self._clock.now() - theirs)
        if skew > MAX_CLOCK_SKEW:
            logger.error("clock of a node is off", node_id=node.node_id, skew_s=skew.total_seconds())
            raise ClockSkewError(
                f"check 4: clock of node {node.node_id} is {skew.total_seconds():.1f} s off,"
                f" at most {MAX_CLOCK_SKEW.total_seconds():g} s are let in"
            )

    async def _check_engine(self, node: Node, hello: nodes_pb2.Hello) -> None:
        engine = hello.engine
        denial = denial_of(
            await self._engines.denials(),
            EngineInfo(name=engine.name, version=engine.version, config_digest=engine.config_digest),
            profiles_of(hello).values(),
        )
        if denial is not None:
            logger.error("engine of a node is denied", node_id=node.node_id, engine=str(denial.rule))
            raise EngineDeniedError(f"check 5: engine {denial.rule} is denied here: {denial.reason}")

    async def _refuse(self, node: Node, error: AgentFactoryError) -> NoReturn:
        """Put the refusal on record, with what it does to the node, and raise it."""
        entry = self._entry(node, "node.session_refused", result=error.reason, reason=str(error)[:256])
        if isinstance(error, ReceiptConflictError):
            await self._nodes.save_state(node.quarantine(), audit=entry)
            self._observer.node_state(node.node_id, NodeState.QUARANTINED)
        elif isinstance(error, NodeEvictedError) and node.state is not NodeState.EVICTED:
            await self._nodes.save_state(node.evict(), audit=entry)
            gone = await self._leases.lose_attempts_of_other_boots(node.node_id, NO_BOOT)
            count_ended(self._observer, gone)
            self._observer.node_state(node.node_id, NodeState.EVICTED)
        else:
            await self._nodes.record(entry)
        raise error

    async def _record(self, node: Node, hello: nodes_pb2.Hello, order_type: str) -> LiveSession:
        opening = SessionOpening(
            node_id=node.node_id,
            boot_id=parse_id(BOOT, hello.boot_id),
            replica_id=self._options.replica_id,
            engine=EngineInfo(
                name=hello.engine.name,
                version=hello.engine.version,
                config_digest=hello.engine.config_digest,
            ),
            slots=hello.slots,
            sandbox_layers=tuple(
                SandboxLayer(name=layer.name, active=layer.active, detail=layer.detail)
                for layer in hello.sandbox_layers
            ),
        )
        session_epoch = await self._nodes.open_session(
            opening, audit=self._entry(node, "node.session_opened", boot_id=hello.boot_id)
        )
        gone = await self._leases.lose_attempts_of_other_boots(node.node_id, opening.boot_id)
        count_ended(self._observer, gone)
        for lost in gone:
            self._fleet.release(node.node_id, (lost.attempt.execution_id, lost.attempt.fencing_token))
        session = LiveSession(
            node_id=node.node_id,
            boot_id=opening.boot_id,
            tenant_id=node.tenant_id,
            session_epoch=session_epoch,
            zone=node.zone or hello.zone,
            engine=opening.engine,
            profiles=profiles_of(hello),
            order_type=order_type,
            slots=hello.slots,
            lease=self._options.lease,
            receipt_key=PublicKey.from_spki_der(node.receipt_public_key),
            ends_at=self._clock.monotonic() + self._session_age(),
            last_message_at=self._clock.monotonic(),
            draining=node.state is NodeState.DRAINING,
            takes_freshness=FRESHNESS_FORMAT in hello.accepts,
            spool_head=head_of(hello.spool_head),
        )
        session.chain.start(sequence=node.last_accepted.sequence, hash_=node.last_accepted.hash)
        session.remember_cached(parse_digest(digest) for digest in hello.cached_digests)
        return session

    async def _welcome(self, node: Node, session: LiveSession) -> None:
        version, keyset = await self._keysets.newest()
        freshness = await self._keysets.freshness()
        welcome = nodes_pb2.Welcome(
            session_epoch=session.session_epoch,
            keyset=keyset,
            last_accepted=nodes_pb2.SpoolHead(
                sequence=node.last_accepted.sequence, hash=node.last_accepted.hash
            ),
            order_type=session.order_type,
            freshness=freshness,
        )
        welcome.heartbeat_every.FromTimedelta(self._options.heartbeat_every)
        welcome.lease.FromTimedelta(self._options.lease)
        self._fleet.add(session)
        self._fleet.require_keyset(version)
        session.keyset_sent, session.keyset_sent_at = version, self._clock.monotonic()
        session.freshness_sent = freshness
        session.send(nodes_pb2.SessionResponse(welcome=welcome))
        if session.draining:
            session.send(nodes_pb2.SessionResponse(drain=nodes_pb2.Drain()))

    def _session_age(self) -> float:
        """Between half of the maximum and all of it."""
        fraction = int.from_bytes(self._random.token_bytes(2), "big") / 0xFFFF
        return self._options.max_session_age.total_seconds() * (0.5 + fraction / 2)

    def _entry(self, node: Node, action: str, *, result: str = "ok", **details: str) -> NewAuditEntry:
        return NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=node.tenant_id,
            actor=node_actor(node.node_id),
            action=action,
            subject=node.node_id,
            result=result,
            details=details,
        )


def denial_of(
    denials: Iterable[EngineDenial], engine: EngineInfo, configurations: Iterable[Digest]
) -> EngineDenial | None:
    """Return the denial that is meant for a node's engine, under any profile that it offers."""
    digests = {engine.config_digest, *configurations}
    return next(
        (
            denial
            for denial in denials
            if denial.rule.fits(name=engine.name, version=engine.version, config_digests=digests)
        ),
        None,
    )


NO_BOOT = BootId("")
"""Equal to no boot id: the other boots of a node are then all of them."""


def common_order_type(accepts: tuple[str, ...]) -> str:
    """Return the newest type of order that both sides speak (rule 11).

    Raises:
        UnsupportedVersionError: There is none.
    """
    for order_type in ORDER_TYPES:
        if order_type in accepts:
            return order_type
    raise UnsupportedVersionError(
        f"check 5: node accepts {', '.join(accepts)[:256] or 'nothing'}, orders here are"
        f" {', '.join(ORDER_TYPES)}"
    )


def profiles_of(hello: nodes_pb2.Hello) -> Mapping[Profile, Digest]:
    """Return what the node's engine is under each profile that it offers.

    A node that names none is of a version with one configuration only, and gets orders of the default profile
    alone. A profile that is not known here is passed over: a newer node may offer it.

    Raises:
        InvalidInputError: A configuration is no digest.
    """
    default = parse_digest(hello.engine.config_digest)
    if not hello.profile_engines:
        return {Profile.DEFAULT: default}
    return {
        PROFILES_BY_NUMBER[engine.profile]: parse_digest(engine.config_digest)
        for engine in hello.profile_engines
        if engine.profile in PROFILES_BY_NUMBER
    }


def head_of(message: nodes_pb2.SpoolHead) -> SpoolHead:
    return SpoolHead(sequence=message.sequence, hash=message.hash, signature=message.signature)


def check_head(node: Node, boot_id: BootId, head: SpoolHead, observer: Observer) -> None:
    """Checks 6 and 7: the head is the node's own and continues what was accepted.

    Raises:
        SignatureInvalidError: Check 6.
        ReceiptConflictError: Check 7, two receipts for one sequence.
        NodeEvictedError: Check 7, receipts that were accepted are lost on the node.
    """
    if head.sequence or head.signature or node.last_accepted.sequence:
        try:
            PublicKey.from_spki_der(node.receipt_public_key).verify(
                head.signature, head.signed_bytes(node.node_id, boot_id)
            )
        except SignatureInvalidError:
            observer.signature_failure("spool_head")
            raise
    if (
        compare_heads(node_id=node.node_id, accepted=node.last_accepted, claimed=head)
        is ChainState.SPOOL_LOST
    ):
        raise NodeEvictedError(
            f"check 7: spool of node {node.node_id} ends at {head.sequence}, accepted are"
            f" {node.last_accepted.sequence}: its identity has ended",
            hint="the node lost receipts that were accepted; enroll it anew",
        )


def _datetime(seconds: int, nanos: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanos // 1000)
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidInputError(f"check 2: hello carries no valid time ({seconds} s)") from error
