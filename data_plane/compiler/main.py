"""Composition root of the compiling node: builds every adapter and runs it until it is told to stop."""

from collections.abc import Mapping
from contextlib import AsyncExitStack

import agentfactory_engine
from prometheus_client import CollectorRegistry

from data_plane.authority import FollowedAuthority
from data_plane.compiler.metrics import CompilerMetrics
from data_plane.compiler.process import CompilingNode
from data_plane.compiler.remote import RemoteDesk
from data_plane.compiler.service import CompileService
from data_plane.identity import read_identity
from data_plane.orders.keyset import NodeKeyset
from data_plane.sandbox.cgroup import open_groups, with_layer
from data_plane.sandbox.compiler import WorkerCompiler
from data_plane.sandbox.domain import EngineInfo
from data_plane.sandbox.engine import check_layers, read_engines, read_layers
from data_plane.settings import CompilerSettings
from shared.admin_http import admin_server
from shared.clock import SystemClock
from shared.errors import VerificationError
from shared.key_files import read_private_key
from shared.logs import get_logger
from shared.manifest import Profile
from shared.runtime import stop_signals
from shared.signatures import FileSigner
from shared.trust import read_trust

logger = get_logger(__name__)


async def run_compiler(settings: CompilerSettings) -> None:
    """Build the compiling node from its settings and run it until SIGTERM or SIGINT.

    Raises:
        AgentFactoryError: It cannot start, or cannot go on.
    """
    async with AsyncExitStack() as stack:
        registry = CollectorRegistry()
        node = await build_compiler(settings, registry, stack)
        port = await stack.enter_async_context(
            admin_server(
                host=settings.admin_host,
                port=settings.admin_port,
                registry=registry,
                readiness=node.readiness,
            )
        )
        stack.enter_context(stop_signals(node.stop))
        logger.info(
            "the compiling node starts",
            node_id=node.identity.node_id,
            control_planes=list(settings.control_planes),
            admin_port=port,
        )
        await node.run()
        logger.info("the compiling node has stopped")


async def build_compiler(
    settings: CompilerSettings, registry: CollectorRegistry, stack: AsyncExitStack
) -> CompilingNode:
    """Build every adapter; what has to be closed is closed by `stack`.

    Raises:
        AgentFactoryError: A file, key or layer of the sandbox is not as it must be; the message names it.
    """
    clock, paths = SystemClock(), settings.paths
    trust, identity = read_trust(paths.trust), read_identity(paths)
    if identity.installation != trust.installation:
        raise VerificationError(
            f"{paths.identity} is of installation {identity.installation!r}, pinned is {trust.installation!r}"
        )
    worker_path = agentfactory_engine.worker_path()
    groups, group_layer = open_groups()
    if groups is not None:
        stack.callback(groups.close)
    check_layers(with_layer(await read_layers(worker_path), group_layer), settings.sandbox_require)
    keyset = NodeKeyset(root_keys=trust.root_keys, installation=trust.installation, path=paths.keyset)
    keyset.load()
    key = read_private_key(settings.compiler_key)
    metrics = CompilerMetrics(registry)
    desk = RemoteDesk(
        targets=settings.control_planes,
        authority=FollowedAuthority(paths.trust, trust).read,
        tls_key_pem=identity.tls_key_pem,
        certificate=identity.certificate,
    )
    service = CompileService(
        desk=desk,
        compiler=WorkerCompiler(worker_path=worker_path, require=settings.sandbox_require, groups=groups),
        engines=_offered(settings, await read_engines(worker_path)),
        keyset=keyset,
        signer=FileSigner(key=key),
        public=key.public,
        metrics=metrics,
        clock=clock,
    )
    return CompilingNode(
        identity=identity,
        paths=paths,
        desk=desk,
        service=service,
        metrics=metrics,
        clock=clock,
        poll=settings.poll,
    )


def _offered(
    settings: CompilerSettings, engines: Mapping[Profile, EngineInfo]
) -> Mapping[Profile, EngineInfo]:
    return {profile: engines[profile] for profile in Profile if profile in settings.profiles}
