"""Builds the parts of a node that take more than a line, from its settings; a stack closes what is open."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import timedelta

from prometheus_client import CollectorRegistry

from data_plane.artifacts.cache import ArtifactCache
from data_plane.artifacts.elsewhere import CompiledElsewhere
from data_plane.artifacts.pieces import HeldPieces
from data_plane.artifacts.seal import KEY_BYTES
from data_plane.host_calls.http_client import DirectHttp, make_tls
from data_plane.host_calls.ports import SecretStore
from data_plane.host_calls.resolver import SystemResolver
from data_plane.host_calls.secrets_file import NoSecrets, SecretsFile
from data_plane.host_calls.service import HostCallParts
from data_plane.identity import NodeIdentity
from data_plane.metrics import NodeMetrics
from data_plane.orders.keyset import NodeKeyset
from data_plane.orders.log_check import LogCheck
from data_plane.orders.log_view import LogView
from data_plane.orders.ports import LogSource
from data_plane.orders.quarantine import Quarantine
from data_plane.orders.verifier import NodeFacts
from data_plane.sandbox.cgroup import WorkerGroups
from data_plane.sandbox.domain import EngineInfo, LayerState
from data_plane.sandbox.pool import WorkerPool
from data_plane.sandbox.scratch import ScratchFolders
from data_plane.session.host_calls import HostCallRelay
from data_plane.settings import NodeSettings
from shared.clock import Clock, SystemRandom
from shared.errors import KeyFormatError, NotFoundError, SettingsError
from shared.ids import BootId
from shared.key_files import read_secret_file, write_secret_file
from shared.manifest import Profile
from shared.trace_setup import TraceOptions, tracing
from shared.tracing import Tracer
from shared.vault_access import VaultAccess


def build_facts(
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


def build_log_check(
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


def build_host_calls(
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


def build_tracing(
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


def build_quarantine(settings: NodeSettings) -> Quarantine:
    return Quarantine(
        crashes=settings.quarantine_crashes,
        window=timedelta(seconds=settings.quarantine_window_s),
        duration=timedelta(seconds=settings.quarantine_for_s),
    )


async def open_sandbox(
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


def build_cache(
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
