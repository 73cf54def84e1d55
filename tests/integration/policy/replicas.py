"""Replicas of the control plane as far as policy goes, over a real Postgres, put together as the product does it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import text

from control_plane.audit.store import PostgresAuditStore
from control_plane.database.engine import create_engine
from control_plane.database.notifications import (
    Channel,
    Notifications,
    PostgresNotifier,
    Subscriptions,
)
from control_plane.database.unit_of_work import HeldConnection, PostgresDatabase
from control_plane.policy.active import ActivePolicy
from control_plane.policy.builtin import builtin_policy, builtin_record
from control_plane.policy.bundles import BundleRef
from control_plane.policy.domain import PolicyInput, Question, Subject
from control_plane.policy.embedded import EmbeddedPolicyEngines
from control_plane.policy.gate import PolicyGate
from control_plane.policy.library import PolicyLibrary
from control_plane.policy.review import PolicyReview
from control_plane.policy.service import PolicyService
from control_plane.policy.store import PostgresBundleStore, PostgresDecisionLog, PostgresDecisionReader
from shared.clock import SystemClock, SystemRandom
from shared.digests import sha256_digest
from shared.ids import TenantId
from shared.keyset import KeyPurpose, Keyset, KeysetEntry
from shared.limits import RequestedLimits
from shared.manifest import Capabilities
from shared.policy_bundle import make_policy, sign_policy
from tests.fakes.log import NoLog
from tests.fixtures.keys import ed25519_key, signer
from tests.fixtures.postgres import OWNER, SERVICE

HOME = TenantId("default")
ADMIN = Subject(identity="spiffe://test/caller/admin", tenant_id=HOME, roles=frozenset({"admin"}))
CALLER = Subject(identity="spiffe://test/caller/someone", tenant_id=HOME, roles=frozenset({"caller"}))
FOREIGNER = Subject(
    identity="spiffe://test/caller/them", tenant_id=TenantId("other"), roles=frozenset({"admin"})
)
KEY = ed25519_key("policy")
BUILTIN = builtin_policy().files["builtin.rego"]
DATA = b'{"operator": {"allowed_http": []}}'
ASKED = PolicyInput(
    subject=CALLER,
    template_name="redact",
    template_version="1.0.0",
    template_digest=sha256_digest(b"manifest"),
    capabilities=Capabilities(),
    limits=RequestedLimits(),
    publisher_key_id=sha256_digest(b"publisher"),
    agent="redactor",
    input_bytes=10,
)


def files(*, refuse: str = "", test: str = "", more: str = "") -> dict[str, bytes]:
    """The built-in policy, with a denial of every execution if there is a reason for one."""
    rules = BUILTIN + (f'\nexecute_denials contains "{refuse}"\n' if refuse else "") + more
    found = {"builtin.rego": rules.encode(), "data.json": DATA}
    if test:
        found["builtin_test.rego"] = test.encode()
    return found


@dataclass
class Keys:
    """A keyset that lists these policy keys."""

    keys: list = field(default_factory=lambda: [KEY])
    revoked: dict = field(default_factory=dict)

    async def current(self) -> Keyset:
        now = SystemClock().now()
        return Keyset(
            version=1,
            installation="test",
            epoch=1,
            root_key_id=ed25519_key("root").key_id,
            issued_at=now,
            entries=tuple(
                KeysetEntry(
                    purpose=KeyPurpose.POLICY,
                    key=key.public,
                    not_before=now - timedelta(days=1),
                    not_after=now + timedelta(days=1),
                    revoked_at=self.revoked.get(key.key_id),
                )
                for key in self.keys
            ),
        )


@dataclass
class Seen:
    """What a replica says of itself."""

    versions: list = field(default_factory=list)

    def policy_decided(self, question, seconds): ...
    def policy_denied(self, question, reason, tenant_id): ...

    def policy_in_force(self, *, version, loaded):
        self.versions.append((version, loaded))


@dataclass(kw_only=True)
class Replica:
    database: PostgresDatabase
    active: ActivePolicy
    library: PolicyLibrary
    review: PolicyReview
    service: PolicyService
    gate: PolicyGate
    keys: Keys
    seen: Seen
    engines: EmbeddedPolicyEngines

    async def publish(self, version: int, content=None, *, key=KEY, subject=ADMIN, name="base"):
        """Sign and publish."""
        made = make_policy(name=name, version=version, files=content or files())
        return await self.library.publish(subject, await sign_policy(made, [signer(key)]), made.files)

    async def activate(self, version: int, *, expected: str | None = None, subject=ADMIN):
        digest = expected if expected is not None else await self.library.digest_in_force()
        return await self.library.activate(subject, BundleRef(version=version), expected=digest)

    async def rollback(self):
        return await self.library.rollback(ADMIN, expected=await self.library.digest_in_force())

    async def execute(self):
        return await self.service.decide(Question.EXECUTE, ASKED)


@asynccontextmanager
async def running_replica(server, name: str, *, engines=None, database=None) -> AsyncIterator[Replica]:
    """Build a replica that listens and polls for the length of the block."""
    engine = create_engine(server.url(name, user=SERVICE), application="test")
    clock, random, keys, seen = SystemClock(), SystemRandom(), Keys(), Seen()
    subscriptions = Subscriptions(replica=random.token_bytes(8).hex())
    notifier = PostgresNotifier(HeldConnection(engine), subscriptions)
    notifications = Notifications(engine, subscriptions)
    database = PostgresDatabase(engine, notifier=notifier)
    audit, store = PostgresAuditStore(database), PostgresBundleStore()
    engines = engines or EmbeddedPolicyEngines()
    builtin = builtin_record(builtin_policy(), now=clock.now())
    active = ActivePolicy(
        database=database,
        store=store,
        keys=keys,
        engines=engines,
        builtin=builtin,
        observer=seen,
        clock=clock,
    )
    library = PolicyLibrary(
        log=NoLog(),
        database=database,
        store=store,
        keys=keys,
        engines=engines,
        in_force=active,
        builtin=builtin,
        home=HOME,
        audit=audit,
        clock=clock,
        random=random,
    )
    review = PolicyReview(
        database=database,
        store=store,
        decisions=PostgresDecisionReader(database),
        engines=engines,
        library=library,
        clock=clock,
    )
    service = PolicyService(in_force=active, observer=seen, clock=clock, random=random)
    gate = PolicyGate(
        policy=service,
        decisions=PostgresDecisionLog(),
        audit=audit,
        database=database,
        clock=clock,
        random=random,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        stack.enter_context(subscriptions.subscribed(Channel.POLICY, active.heard))
        await active.confirmed()
        for loop in (notifier.run, notifications.run, active.run):
            stack.push_async_callback(_ended, asyncio.create_task(loop()))
        yield Replica(
            database=database,
            active=active,
            library=library,
            review=review,
            service=service,
            gate=gate,
            keys=keys,
            seen=seen,
            engines=engines,
        )


async def _ended(task: asyncio.Task) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def run_as_owner(server, name: str, *statements: str) -> None:
    """Do to the database what only its owner can."""
    owner = create_engine(server.url(name, user=OWNER), application="test")
    async with owner.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await owner.dispose()
