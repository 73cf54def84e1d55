"""What nodes are told to believe has leaves of its own, and gets its place before who recorded it goes on."""

import asyncio
import hashlib
from datetime import timedelta

import pytest
from sqlalchemy import text

from control_plane.database.engine import create_engine
from control_plane.database.migrate import downgrade, upgrade
from control_plane.database.unit_of_work import connection_of
from control_plane.log.store import PostgresLogStore
from shared.checkpoints import parse_checkpoint
from shared.digests import digest_to_raw, sha256_digest
from shared.errors import InvalidInputError, NotFoundError
from shared.log_leaf import activation_subject, commitment, policy_fact, template_fact
from shared.merkle import leaf_hash, verify_consistency, verify_inclusion
from tests.builders.executions import TENANT
from tests.integration.log.test_log import integrate_all, leaves, log_of, once, record

TEMPLATE, POLICY = sha256_digest(b"a logged template"), sha256_digest(b"a logged policy")
PUBLISH = (
    "INSERT INTO templates (template_id, tenant_id, name) VALUES ('tpl_1', 'default', 'logged')",
    "INSERT INTO artifacts (module_digest, module, size_bytes) VALUES ('sha256:m', '', 0)",
    (
        "INSERT INTO template_versions (template_version_id, tenant_id, template_id, name, version, digest,"
        " module_digest, publisher_key_id, manifest, envelope, published_by) VALUES ('tpv_1', 'default', 'tpl_1',"
        f" 'logged', '1.0.0', '{TEMPLATE}', 'sha256:m', 'k', '', '', 'ann')"
    ),
)
BUNDLE = (
    "INSERT INTO policy_bundles (digest, version, name, key_id, envelope, files, published_by)"
    f" VALUES ('{POLICY}', 7, 'strict', 'k', '', '', 'ann')"
)
ACTIVATE = (
    "INSERT INTO policy_activations (number, digest, place, activated_by, activated_at)"
    " VALUES ({number}, {digest}, {number}, 'ann', '2026-11-30T12:00:00Z')"
)
KEYSET = "INSERT INTO keysets (version, envelope) VALUES (77, 'signed')"
ENROLL = (
    "INSERT INTO nodes (node_id, tenant_id, receipt_key_id, receipt_public_key, certificate_serial, enrolled_at)"
    " VALUES ('nod_1', 'default', 'sha256:k', 'spki', '1', '2026-11-30T12:00:00Z')"
)


def lines(*fields: str) -> bytes:
    return hashlib.sha256("\n".join(fields).encode()).digest()


WHOLE = hashlib.sha256(b"spki").hexdigest()
SAID = {
    "template": ("template", f"default/{TEMPLATE}", digest_to_raw(TEMPLATE)),
    "policy": ("policy", POLICY, digest_to_raw(POLICY)),
    "activation": (
        "policy_activation",
        "activation/1",
        lines("1", POLICY, "1", "ann", "2026-11-30T12:00:00.000000Z"),
    ),
    "built-in again": (
        "policy_activation",
        "activation/2",
        lines("2", "", "2", "ann", "2026-11-30T12:00:00.000000Z"),
    ),
    "keyset": ("keyset", "keyset/77", hashlib.sha256(b"signed").digest()),
    "node": ("node", "nod_1", lines("nod_1", "default", "sha256:k", WHOLE, "2026-11-30T12:00:00.000000Z")),
    "retired": (
        "template_state",
        f"default/{TEMPLATE}/retired",
        lines("default", TEMPLATE, "logged", "1.0.0", "retired"),
    ),
    "revoked": (
        "template_state",
        f"default/{TEMPLATE}/revoked",
        lines("default", TEMPLATE, "logged", "1.0.0", "revoked"),
    ),
    "quarantined": (
        "node_state",
        "nod_1/quarantined",
        lines("nod_1", "default", "sha256:k", "quarantined"),
    ),
    "evicted": ("node_state", "nod_1/evicted", lines("nod_1", "default", "sha256:k", "evicted")),
}


async def run(world, *statements: str) -> None:
    for statement in statements:
        async with world.database.transaction() as tx:
            await connection_of(tx).execute(text(statement))


async def record_everything(world) -> None:
    states = [
        f"UPDATE {table} SET state = '{state}' WHERE {key}"
        for table, key, states in (
            ("template_versions", f"digest = '{TEMPLATE}'", ("active", "retired", "retired", "revoked")),
            ("nodes", "node_id = 'nod_1'", ("draining", "quarantined", "quarantined", "evicted")),
        )
        for state in states
    ]
    first = ACTIVATE.format(number=1, digest=f"'{POLICY}'")
    second = ACTIVATE.format(number=2, digest="NULL")
    await run(world, *PUBLISH, BUNDLE, first, second, KEYSET, ENROLL, *states)


async def test_each_of_them_has_one_leaf_that_says_what_anybody_can_compute(world):
    log = log_of(world)
    await record_everything(world)
    await integrate_all(log)
    rows = {row["subject"]: row for row in await leaves(world)}
    assert len(rows) == len(await leaves(world))
    for what, (kind, subject, content) in SAID.items():
        row = rows[subject]
        expected = commitment(kind=kind, subject=subject, salt=row["salt"], content=content)
        assert (row["kind"], row["commitment"]) == (kind, expected), what
    said = {subject for _, subject, _ in SAID.values()}
    others = {row["kind"] for row in rows.values() if row["subject"] not in said}
    assert others <= {"node", "keyset", "template", "policy", "audit_entry", "receipt"}
    assert "nod_1/draining" not in rows


async def test_what_was_there_before_the_upgrade_is_announced_once(owner_url):
    """Up, down and up again: facts of all ages have one leaf each, and nothing waits for a place twice."""
    engine = create_engine(owner_url, application="test")
    try:
        await downgrade(owner_url, "0019")
        async with engine.begin() as connection:
            first = ACTIVATE.format(number=1, digest=f"'{POLICY}'")
            tenant = "INSERT INTO tenants (tenant_id) VALUES ('default')"
            for statement in (tenant, *PUBLISH, BUNDLE, first, KEYSET, ENROLL):
                await connection.execute(text(statement))
        for _ in range(2):
            await upgrade(owner_url)
            await downgrade(owner_url, "0019")
        await upgrade(owner_url)
        async with engine.connect() as connection:
            found = await connection.execute(text("SELECT kind, unnest(subjects) FROM log_pending"))
            waiting = [tuple(row) for row in found]
        expected = {SAID[name][:2] for name in ("template", "policy", "activation", "keyset", "node")}
        assert expected <= set(waiting)
        assert len(waiting) == len(set(waiting))
    finally:
        await engine.dispose()


async def test_rule_15_what_was_recorded_is_in_a_signed_checkpoint_when_include_returns(world):
    log = log_of(world)
    await record(world, 700)  # more than one group stands before it
    await run(world, *PUBLISH)
    subject = template_fact(TENANT, TEMPLATE).subject
    assert await log.include([subject], within=timedelta(seconds=30))
    view = await log.view(0, [subject])
    assert parse_checkpoint(view.checkpoint).checkpoint.size > view.proofs[subject].entry.log_index


async def test_include_after_the_death_of_whoever_recorded(world):
    """Killed between record and integration: what it left is integrated by whoever asks for it next."""

    class KilledError(Exception):
        pass

    class Dying(PostgresLogStore):
        async def append(self, tx, **named):
            raise KilledError

    await run(world, *PUBLISH)
    subject = template_fact(TENANT, TEMPLATE).subject
    with pytest.raises(KilledError):
        await log_of(world, Dying()).include([subject])
    assert await log_of(world).include([subject], within=timedelta(seconds=30))


async def test_include_gives_up_in_time_and_raises_nothing(world):
    log = log_of(world)
    assert not await log.include(["default/never recorded"], within=timedelta(milliseconds=50))

    class Busy(PostgresLogStore):
        async def take_lead(self, tx):
            return False

    await run(world, *PUBLISH)
    subject = template_fact(TENANT, TEMPLATE).subject
    assert not await log_of(world, Busy()).include([subject], within=timedelta(milliseconds=50))


async def test_many_who_wait_at_once_are_all_served(world):
    logs = [log_of(world) for _ in range(3)]
    await run(world, *PUBLISH, BUNDLE, ACTIVATE.format(number=1, digest=f"'{POLICY}'"), KEYSET)
    wanted = [
        [template_fact(TENANT, TEMPLATE).subject],
        [activation_subject(1), policy_fact(POLICY).subject],
        ["keyset/77"],
    ]
    within = timedelta(seconds=30)
    waits = [log.include(subjects, within=within) for log, subjects in zip(logs, wanted, strict=True)]
    assert all(await asyncio.gather(*waits))


async def test_a_policy_that_decides_is_noted_once(world):
    log = log_of(world)
    for _ in range(3):
        await log.note_policy(POLICY)
    assert await log.include([policy_fact(POLICY).subject], within=timedelta(seconds=30))
    kinds = [row["kind"] for row in await leaves(world) if row["subject"] == POLICY]
    assert kinds == ["policy"]


async def test_a_view_continues_what_is_known_and_proves_what_is_asked_for(world):
    log = log_of(world)
    with pytest.raises(NotFoundError):
        await log.view(0, ())
    await record(world, 300)
    await integrate_all(log)
    await log.sign()
    known = parse_checkpoint(await log.checkpoint()).checkpoint
    await run(world, *PUBLISH)
    await once(log)
    fact = template_fact(TENANT, TEMPLATE)
    view = await log.view(known.size, [fact.subject, "unknown"])
    newest = parse_checkpoint(view.checkpoint).checkpoint
    verify_consistency(
        first_size=known.size,
        second_size=newest.size,
        proof=view.consistency,
        first_root=known.root,
        second_root=newest.root,
    )
    assert list(view.proofs) == [fact.subject]
    proof = view.proofs[fact.subject]
    verify_inclusion(
        leaf=leaf_hash(fact.commitment(proof.entry.salt)),
        index=proof.entry.log_index,
        size=newest.size,
        path=proof.path,
        root=newest.root,
    )
    assert (await log.view(newest.size, ())).consistency == ()
    with pytest.raises(InvalidInputError):
        await log.view(newest.size + 1, ())
