"""The registry of templates and agents over a real Postgres, as the composition root wires it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from control_plane.agents.directory import CachedAgentDirectory
from control_plane.agents.rollouts import RolloutService
from control_plane.agents.service import AgentService
from control_plane.agents.store import PostgresAgentStore
from control_plane.audit.store import PostgresAuditStore
from control_plane.channels.service import ChannelService
from control_plane.channels.store import PostgresChannelStore
from control_plane.database.engine import create_engine
from control_plane.database.unit_of_work import PostgresDatabase
from control_plane.kv.store import PostgresKvStore
from control_plane.metrics import ControlMetrics
from control_plane.policy.active import FixedPolicy
from control_plane.policy.builtin import builtin_policy
from control_plane.policy.domain import Subject
from control_plane.policy.embedded import EmbeddedPolicyEngines
from control_plane.policy.gate import PolicyGate
from control_plane.policy.service import PolicyService
from control_plane.policy.store import PostgresDecisionLog
from control_plane.stops.service import StopService
from control_plane.stops.store import PostgresStopStore
from control_plane.stops.watch import StopWatch
from control_plane.templates.cached import CachedTemplates, weigh
from control_plane.templates.catalog import TemplateCatalog
from control_plane.templates.module_check import check_agent_module
from control_plane.templates.service import TemplateService
from control_plane.templates.store import PostgresTemplateStore
from shared.cache import Cache, CacheBounds
from shared.clock import SystemClock, SystemRandom
from shared.digests import sha256_digest
from shared.ids import TenantId
from shared.limits import RequestedLimits
from shared.manifest import Capabilities, Manifest, ModuleFile
from shared.packages import SignedPackage, make_package, sign_package
from shared.schemas import JsonSchema
from tests.fakes.log import NoLog
from tests.fixtures.keys import rsa_key, signer, trusting
from tests.fixtures.postgres import OWNER, SERVICE

PUBLISHER = rsa_key("publisher")
MODULE = (Path(__file__).parents[2] / "guests" / "probe.wasm").read_bytes()
TENANT = TenantId("default")
AUTHOR = Subject(identity="spiffe://test/caller/author", tenant_id=TENANT, roles=frozenset({"author"}))
ADMIN = Subject(identity="spiffe://test/caller/admin", tenant_id=TENANT, roles=frozenset({"admin"}))
CALLER = Subject(identity="spiffe://test/caller/someone", tenant_id=TENANT, roles=frozenset({"caller"}))
SCHEMA = {"type": "object", "properties": {"depth": {"type": "integer"}}, "additionalProperties": False}


CACHE_BOUNDS = CacheBounds(entries=64, life=timedelta(minutes=10))


class Publishers:
    async def publishers(self, at):
        return trusting(PUBLISHER)


class Stopped(list):
    def __init__(self):
        super().__init__()
        self.scopes = []

    async def halt(self, scope, reason, *, actor):
        self.append((scope.template_digest, reason, actor))
        self.scopes.append(scope)
        return 0


class Uncounted:
    def policy_decided(self, question, seconds): ...
    def policy_denied(self, question, reason, tenant_id): ...


class NobodyListens:
    def notify(self, channel, payloads=()): ...

    def notify_others(self, channel, payloads=()): ...


async def package(
    *,
    name: str = "probe",
    version: str = "1.0.0",
    module: bytes = MODULE,
    capabilities: Capabilities | None = None,
    key=PUBLISHER,
    limits: RequestedLimits | None = None,
) -> SignedPackage:
    """Return a package as a publisher signs it."""
    manifest = Manifest(
        name=name,
        version=version,
        media_type="application/json",
        module=ModuleFile(file_name="probe.wasm", digest=sha256_digest(module), size_bytes=len(module)),
        parameters_schema=JsonSchema.from_object(SCHEMA),
        capabilities=capabilities or Capabilities(),
        limits=limits or RequestedLimits(),
    )
    return await sign_package(make_package(manifest, module), [signer(key)])


@dataclass
class Registry:
    engine: AsyncEngine
    owner_url: str
    database: PostgresDatabase
    templates: TemplateService
    catalog: TemplateCatalog
    agents: AgentService
    rollouts: RolloutService
    channels: ChannelService
    cached: CachedTemplates
    directory: CachedAgentDirectory
    stops: StopService
    watch: StopWatch
    stopped: Stopped

    async def publish(self, signed: SignedPackage, subject: Subject = AUTHOR, *, module: bytes | None = None):
        """Publish in chunks, as a client does."""
        content = next(iter(signed.blobs.values())) if module is None else module

        async def chunks():
            for start in range(0, len(content), 16_384):
                yield content[start : start + 16_384]

        return await self.templates.publish(subject, signed.envelope, chunks())

    async def audit(self) -> list[tuple[str, str, str]]:
        """Return (action, subject, result) of every entry, oldest first."""
        return await self.rows("SELECT action, subject, result FROM audit_entries ORDER BY recorded_at")

    async def rows(self, query: str):
        async with self.engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(query))]

    async def run(self, statement: str) -> None:
        """Run a statement as the service."""
        async with self.engine.begin() as connection:
            await connection.execute(text(statement))


@asynccontextmanager
async def open_registry(server, name: str) -> AsyncIterator[Registry]:
    """Build the registry as the service's role, on a fresh database with two tenants."""
    owner = create_engine(server.url(name, user=OWNER), application="test")
    async with owner.begin() as connection:
        await connection.execute(text("INSERT INTO tenants (tenant_id) VALUES ('default'), ('other')"))
    engine = create_engine(server.url(name, user=SERVICE), application="test")
    database = PostgresDatabase(engine, notifier=NobodyListens())
    try:
        yield await registry_over(database, owner, server.url(name, user=OWNER))
    finally:
        await database.close()
        await owner.dispose()


async def registry_over(database: PostgresDatabase, owner: AsyncEngine, owner_url: str) -> Registry:
    """Wire everything over one database, as one replica does."""
    clock, random, audit, decisions = (
        SystemClock(),
        SystemRandom(),
        PostgresAuditStore(database),
        PostgresDecisionLog(),
    )
    policy = PolicyService(
        in_force=FixedPolicy(await EmbeddedPolicyEngines().load(builtin_policy())),
        observer=Uncounted(),
        clock=clock,
        random=random,
    )
    gate = PolicyGate(
        policy=policy, decisions=decisions, audit=audit, database=database, clock=clock, random=random
    )
    template_store, agent_store, stopped = PostgresTemplateStore(), PostgresAgentStore(), Stopped()
    channel_store = PostgresChannelStore()
    catalog = TemplateCatalog(database=database, store=template_store)
    cached = CachedTemplates(catalog=catalog, cache=Cache(bounds=CACHE_BOUNDS, clock=clock, weigh=weigh))
    shared = {"gate": gate, "decisions": decisions, "audit": audit, "clock": clock, "random": random}
    return Registry(
        engine=owner,
        owner_url=owner_url,
        database=database,
        templates=TemplateService(
            log=NoLog(),
            database=database,
            store=template_store,
            publishers=Publishers(),
            check_module=check_agent_module,
            running=stopped,
            **shared,
        ),
        catalog=catalog,
        agents=AgentService(
            database=database,
            store=agent_store,
            values=PostgresKvStore(database),
            templates=cached,
            channels=channel_store,
            **shared,
        ),
        rollouts=RolloutService(database=database, store=agent_store, templates=cached, **shared),
        channels=ChannelService(
            database=database, store=channel_store, agents=agent_store, templates=catalog, **shared
        ),
        cached=cached,
        directory=CachedAgentDirectory(
            database=database,
            agents=agent_store,
            templates=catalog,
            cache=Cache(bounds=CACHE_BOUNDS, clock=clock),
        ),
        stops=StopService(
            database=database,
            store=PostgresStopStore(),
            halting=stopped,
            audit=audit,
            clock=clock,
            random=random,
            observer=ControlMetrics(CollectorRegistry()),
        ),
        watch=StopWatch(database=database, store=PostgresStopStore(), halting=stopped),
        stopped=stopped,
    )
