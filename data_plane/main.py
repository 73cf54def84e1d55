"""Composition root of the node: builds every adapter and runs the node until it is told to stop."""

from contextlib import AsyncExitStack
from datetime import timedelta

import agentfactory_engine
from prometheus_client import CollectorRegistry

from data_plane.artifacts.elsewhere import CompiledElsewhere
from data_plane.artifacts.pieces import HeldPieces
from data_plane.artifacts.service import ArtifactService
from data_plane.authority import FollowedAuthority
from data_plane.carrier import OrderCarrier
from data_plane.identity import read_identity
from data_plane.metrics import NodeMetrics
from data_plane.node import Node
from data_plane.orders.admission import Admissions
from data_plane.orders.freshness import Freshness
from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.ledger import OrderLedger
from data_plane.orders.policy import load_node_policy
from data_plane.receipts.issuer import ReceiptIssuer
from data_plane.receipts.spool import Spool
from data_plane.runner import OrderRunner
from data_plane.sandbox.cgroup import open_groups, with_layer
from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.engine import check_layers, read_engines, read_layers
from data_plane.session.host_calls import HostCallRelay
from data_plane.session.leases import Leases
from data_plane.session.outbox import Outbox
from data_plane.session.remote import ControlPlaneLink
from data_plane.session.service import SessionService
from data_plane.session.stream import SessionParts
from data_plane.settings import NodeSettings
from data_plane.taker import RunnerTaker
from data_plane.wiring import (
    build_cache,
    build_facts,
    build_host_calls,
    build_log_check,
    build_quarantine,
    build_tracing,
    open_sandbox,
)
from shared.admin_http import admin_server
from shared.clock import SystemClock, SystemRandom
from shared.errors import VerificationError
from shared.gathering import Gathering
from shared.ids import BOOT, new_id
from shared.logs import get_logger
from shared.runtime import settle, stop_signals
from shared.trust import read_trust

logger = get_logger(__name__)


async def run_node(settings: NodeSettings) -> None:
    """Build the node from its settings and run it until SIGTERM or SIGINT.

    Raises:
        AgentFactoryError: It cannot start, or cannot go on.
    """
    async with AsyncExitStack() as stack:
        node, registry = await build_node(settings, stack)

        port = await stack.enter_async_context(
            admin_server(
                host=settings.admin_host,
                port=settings.admin_port,
                registry=registry,
                readiness=node.readiness,
            )
        )
        stack.enter_context(stop_signals(node.stop))
        settle()
        logger.info(
            "the node starts",
            node_id=node.identity.node_id,
            control_planes=list(settings.control_planes),
            slots=settings.slots,
            admin_port=port,
        )
        await node.run()
        logger.info("the node has stopped")


async def build_node(settings: NodeSettings, stack: AsyncExitStack) -> tuple[Node, CollectorRegistry]:
    """Build every adapter; what has to be closed is closed by `stack`.

    Raises:
        AgentFactoryError: A file, key, port or lock is not as it must be; the message names it.
    """
    clock, random = SystemClock(), SystemRandom()
    paths, trust = settings.paths, read_trust(settings.paths.trust)
    identity = read_identity(paths)
    if identity.installation != trust.installation:
        raise VerificationError(
            f"{paths.identity} is of installation {identity.installation!r}, pinned is {trust.installation!r}"
        )
    worker_path = agentfactory_engine.worker_path()
    engines = await read_engines(worker_path)
    groups, group_layer = open_groups()
    if groups is not None:
        stack.callback(groups.close)
    layers = with_layer(await read_layers(worker_path), group_layer)
    check_layers(layers, settings.sandbox_require)
    facts = build_facts(settings, identity, engines, layers, new_id(BOOT, clock, random))
    registry = CollectorRegistry()
    tracer = await stack.enter_async_context(build_tracing(settings, identity, registry, clock, random))
    metrics = NodeMetrics(registry, clock)
    metrics.show_layers(layers)
    keyset = NodeKeyset(root_keys=trust.root_keys, installation=trust.installation, path=paths.keyset)
    keyset.load()
    freshness = Freshness(
        keyset=keyset,
        installation=trust.installation,
        max_staleness=timedelta(seconds=settings.max_staleness_s),
        max_skew=facts.max_skew,
        clock=clock,
    )
    metrics.watch_freshness(freshness.age_seconds)
    link = ControlPlaneLink(
        targets=settings.control_planes,
        authority=FollowedAuthority(paths.trust, trust).read,
        tls_key_pem=identity.tls_key_pem,
        certificate=identity.certificate,
    )
    pieces = HeldPieces()
    elsewhere = (
        CompiledElsewhere(source=link, keyset=keyset, observer=metrics, pieces=pieces, clock=clock)
        if settings.accept_compiled_artifacts
        else None
    )
    cache = build_cache(settings, engines, elsewhere, pieces, random)
    stack.push_async_callback(cache.settled)
    log = build_log_check(settings, keyset, link, metrics, clock)
    leases = Leases()
    spool = Spool.open(
        paths.spool,
        bound_bytes=settings.spool_bytes,
        gathering=Gathering(),
    )
    # The node closes it when it ends; this is for a start that fails further down.
    stack.push_async_callback(spool.close)
    issuer = ReceiptIssuer(spool=spool, key=identity.receipt_key, facts=facts, random=random)
    admissions = Admissions(
        slots=settings.slots, queue=settings.queue, leases=leases, spool=spool, ceilings=facts.ceilings
    )
    outbox = Outbox(spool=spool, clock=clock)
    relay = HostCallRelay(wake=outbox.changed.set)
    sandbox = await open_sandbox(settings, worker_path, engines, groups, stack)
    compiler = WorkerCompiler(worker_path=worker_path, require=settings.sandbox_require, groups=groups)
    runner = OrderRunner(
        facts=facts,
        keyset=keyset,
        freshness=freshness,
        ledger=OrderLedger(max_order_life=facts.max_order_life, max_skew=facts.max_skew),
        leases=leases,
        admissions=admissions,
        carrier=OrderCarrier(
            facts=facts,
            leases=leases,
            log=log,
            modules=ArtifactService(
                cache=cache,
                source=link,
                compiler=compiler,
                keyset=keyset,
                observer=metrics,
                clock=clock,
                elsewhere=elsewhere,
            ),
            inputs=link,
            sandbox=sandbox,
            host_calls=build_host_calls(settings, relay, metrics, stack, clock),
            quarantine=build_quarantine(settings),
            policy=load_node_policy(settings.policy_file, settings.policy_data_file),
            announcer=outbox,
            metrics=metrics,
            clock=clock,
        ),
        issuer=issuer,
        announcer=outbox,
        metrics=metrics,
        clock=clock,
        tracer=tracer,
    )
    parts = SessionParts(
        facts=facts,
        zone=settings.zone,
        keyset=keyset,
        freshness=freshness,
        log=log,
        leases=leases,
        admissions=admissions,
        cache=cache,
        spool=spool,
        issuer=issuer,
        outbox=outbox,
        host_calls=relay,
        orders=RunnerTaker(runner),
        outputs=link,
        metrics=metrics,
        clock=clock,
    )
    node = Node(
        identity=identity,
        paths=paths,
        link=link,
        sessions=SessionService(connector=link, parts=parts, random=random),
        runner=runner,
        log=log,
        admissions=admissions,
        leases=leases,
        spool=spool,
        cache=cache,
        sandbox=sandbox,
        metrics=metrics,
        clock=clock,
        drain_timeout=timedelta(seconds=settings.drain_timeout_s),
    )
    metrics.refresh = node.collect
    return node, registry
