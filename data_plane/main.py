"""Composition root of the node: builds every adapter and runs the node until it is told to stop."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import timedelta

import agentfactory_engine
from prometheus_client import CollectorRegistry

from data_plane.artifacts.cache import ArtifactCache
from data_plane.artifacts.elsewhere import CompiledElsewhere
from data_plane.artifacts.pieces import HeldPieces
from data_plane.artifacts.seal import KEY_BYTES
from data_plane.artifacts.service import ArtifactService
from data_plane.authority import FollowedAuthority
from data_plane.carrier import OrderCarrier
from data_plane.host_calls.http_client import DirectHttp, make_tls
from data_plane.host_calls.ports import SecretStore
from data_plane.host_calls.resolver import SystemResolver
from data_plane.host_calls.secrets_file import NoSecrets, SecretsFile
from data_plane.host_calls.service import HostCallParts
from data_plane.identity import NodeIdentity, read_identity
from data_plane.metrics import NodeMetrics
from data_plane.node import Node
from data_plane.orders.admission import Admissions
from data_plane.orders.freshness import Freshness
from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.ledger import OrderLedger
from data_plane.orders.log_check import LogCheck
from data_plane.orders.log_view import LogView
from data_plane.orders.policy import load_node_policy
from data_plane.orders.ports import LogSource
from data_plane.orders.quarantine import Quarantine
from data_plane.orders.verifier import NodeFacts
from data_plane.receipts.issuer import ReceiptIssuer
from data_plane.receipts.spool import Spool
from data_plane.runner import OrderRunner
from data_plane.sandbox.cgroup import WorkerGroups, open_groups, with_layer
from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.domain import EngineInfo, LayerState
from data_plane.sandbox.engine import check_layers, read_engines, read_layers
from data_plane.sandbox.pool import WorkerPool
from data_plane.sandbox.scratch import ScratchFolders
from data_plane.session.host_calls import HostCallRelay
from data_plane.session.leases import Leases
from data_plane.session.outbox import Outbox
from data_plane.session.remote import ControlPlaneLink
from data_plane.session.service import SessionService
from data_plane.session.stream import SessionParts
from data_plane.settings import NodeSettings
from data_plane.taker import RunnerTaker
from shared.admin_http import admin_server
from shared.clock import Clock, SystemClock, SystemRandom
from shared.errors import (
    KeyFormatError,
    NotFoundError,
    SettingsError,
    VerificationError,
)
from shared.gathering import Gathering
from shared.ids import BOOT, BootId, new_id
from shared.key_files import read_secret_file, write_secret_file
from shared.logs import get_logger
from shared.manifest import Profile
from shared.runtime import settle, stop_signals
from shared.trace_setup import TraceOptions, tracing
from shared.tracing import Tracer
from shared.trust import read_trust
from shared.vault_access import VaultAccess

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
    facts = _facts(settings, identity, engines, layers, new_id(BOOT, clock, random))
    registry = CollectorRegistry()
    tracer = await stack.enter_async_context(_tracing(settings, identity, registry, clock, random))
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
    cache = _cache(settings, engines, elsewhere, pieces, random)
    stack.push_async_callback(cache.settled)
    log = _log_check(settings, keyset, link, metrics, clock)
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
    sandbox = await _sandbox(settings, worker_path, engines, groups, stack)
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
            host_calls=_host_calls(settings, relay, metrics, stack, clock),
            quarantine=_quarantine(settings),
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


def _facts(
    settings: NodeSettings,
    identity: NodeIdentity,
    engines: Mapping[Profile, EngineInfo],
    layers: tuple[LayerState, ...],
    boot_id: BootId,
) -> NodeFacts:
    return NodeFacts(
        installation=identity.installation,
        node_id=identity.node_id,
        boot_id=boot_id,
        engines={profile: engines[profile] for profile in Profile if profile in settings.profiles},
        ceilings=settings.ceilings,
        max_order_life=timedelta(seconds=settings.max_order_life_s),
        max_skew=timedelta(seconds=settings.max_skew_s),
        layers=layers,
    )


def _log_check(
    settings: NodeSettings, keyset: NodeKeyset, source: LogSource, metrics: NodeMetrics, clock: Clock
) -> LogCheck:
    max_age = timedelta(seconds=settings.max_log_age_s)
    view = LogView(
        keyset=keyset,
        installation=keyset.installation,
        path=settings.data_dir / "log.checkpoint",
        max_age=max_age,
        clock=clock,
    )
    view.load()
    return LogCheck(
        view=view,
        source=source,
        require=settings.log_require,
        max_age=max_age,
        metrics=metrics,
        clock=clock,
    )


def _host_calls(
    settings: NodeSettings,
    relay: HostCallRelay,
    metrics: NodeMetrics,
    stack: AsyncExitStack,
    clock: Clock,
) -> HostCallParts:
    resolver = SystemResolver()
    stack.callback(resolver.close)
    try:
        tls = make_tls(None if settings.http_ca_file is None else str(settings.http_ca_file))
    except OSError as error:
        raise SettingsError(f"http_ca_file {settings.http_ca_file} cannot be used: {error}") from error
    return HostCallParts(
        policy=settings.http_policy,
        transport=DirectHttp(tls),
        resolver=resolver,
        intents=relay,
        kv=relay,
        secrets=_secrets(settings, stack, clock),
        metrics=metrics,
        llm=settings.llm_policy,
    )


def _secrets(settings: NodeSettings, stack: AsyncExitStack, clock: Clock) -> SecretStore:
    if settings.vault_url:
        return _vault_secrets(settings, stack, clock)
    if settings.secrets_file is None:
        return NoSecrets()
    secrets = SecretsFile(settings.secrets_file)
    secrets.load()
    return secrets


def _vault_secrets(settings: NodeSettings, stack: AsyncExitStack, clock: Clock) -> SecretStore:
    if settings.secrets_file is not None or settings.vault_secret_id_file is None:
        raise SettingsError(
            "secrets are in a vault or in a file", hint="set vault_secret_id_file, and no secrets_file"
        )
    # Whoever has no vault loads no client of one.
    from data_plane.host_calls.secrets_vault import VaultSecrets  # noqa: PLC0415
    from shared.vault import VaultClient  # noqa: PLC0415

    access = VaultAccess(
        url=settings.vault_url,
        role_id=settings.vault_role_id,
        secret_id_file=settings.vault_secret_id_file,
        approle_mount=settings.vault_approle_mount,
        namespace=settings.vault_namespace,
        ca_file=settings.vault_ca_file,
        timeout=timedelta(seconds=settings.vault_timeout_s),
    )
    vault = VaultClient(access, clock=clock)
    stack.push_async_callback(vault.close)
    return VaultSecrets(vault, clock=clock, mount=settings.vault_kv_mount, prefix=settings.vault_kv_prefix)


def _tracing(
    settings: NodeSettings,
    identity: NodeIdentity,
    registry: CollectorRegistry,
    clock: Clock,
    random: SystemRandom,
) -> AbstractAsyncContextManager[Tracer]:
    return tracing(
        TraceOptions(
            endpoint=settings.otlp_endpoint,
            authority=settings.otlp_ca_file,
            ratio=0,  # no trace begins here: its order says whether it is kept
            max_per_second=settings.trace_max_per_s,
        ),
        service="agentfactory-node",
        instance=identity.node_id,
        registry=registry,
        clock=clock,
        random=random,
    )


def _quarantine(settings: NodeSettings) -> Quarantine:
    return Quarantine(
        crashes=settings.quarantine_crashes,
        window=timedelta(seconds=settings.quarantine_window_s),
        duration=timedelta(seconds=settings.quarantine_for_s),
    )


async def _sandbox(
    settings: NodeSettings,
    worker_path: str,
    engines: Mapping[Profile, EngineInfo],
    groups: WorkerGroups | None,
    stack: AsyncExitStack,
) -> WorkerPool:
    pool = WorkerPool(
        worker_path=worker_path,
        engine=engines[Profile.DEFAULT],
        engines=engines,
        slots=settings.slots,
        max_warm_workers=settings.max_warm_workers,
        require=settings.sandbox_require,
        scratch=ScratchFolders(settings.paths.scratch),
        groups=groups,
        max_memory_bytes=settings.max_memory_bytes,
    )
    return await stack.enter_async_context(pool)


def _cache(
    settings: NodeSettings,
    engines: Mapping[Profile, EngineInfo],
    elsewhere: CompiledElsewhere | None,
    pieces: HeldPieces,
    random: SystemRandom,
) -> ArtifactCache:
    key_file = settings.data_dir / "artifact.key"
    try:
        mac_key = read_secret_file(key_file, max_bytes=KEY_BYTES)
    except NotFoundError:
        mac_key = random.token_bytes(KEY_BYTES)
        write_secret_file(key_file, mac_key)
    if len(mac_key) != KEY_BYTES:
        raise KeyFormatError(
            f"{key_file} has {len(mac_key)} bytes, not {KEY_BYTES}",
            hint="remove it: artifacts are compiled anew",
        )
    cache = ArtifactCache(
        settings.paths.artifacts,
        mac_key=mac_key,
        engines=engines,
        bound_bytes=settings.cache_bytes,
        trusts=(lambda _: False) if elsewhere is None else elsewhere.trusts,
        pieces=pieces,
    )
    cache.load()
    return cache
