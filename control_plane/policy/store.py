"""Postgres behind `DecisionLog`, `DecisionReader` and `BundleStore`. Adds and reads; changes nothing."""

from typing import Any, Final

from sqlalchemy import Row, Select, func, insert, select, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from control_plane.database.ports import Transaction
from control_plane.database.tables import decisions, policy_activations, policy_bundles
from control_plane.database.unit_of_work import PostgresDatabase, connection_of
from control_plane.paging import BAD_TOKEN, Page, decode_token, encode_token
from control_plane.policy.bundles import Activation, BundleRecord, RecordedDecision
from control_plane.policy.domain import Decision
from shared.canonical import canonical_json, parse_strict
from shared.digests import Digest, sha256_digest
from shared.errors import ConflictError, InvalidInputError, NotFoundError
from shared.ids import DECISION, DecisionId, TenantId, parse_id
from shared.policy_bundle import MAX_BUNDLE_BYTES

MAX_FILES_JSON_BYTES: Final = 8 * MAX_BUNDLE_BYTES
"""A text in JSON has at most six bytes for each of its own, and paths."""

_d = decisions.c
_b = policy_bundles.c
_a = policy_activations.c
_SUMMARY: Final = (_b.digest, _b.name, _b.version, _b.comment, _b.key_id, _b.published_by, _b.published_at)

_ADD: Final = insert(decisions)


class PostgresDecisionLog:
    """Implements `DecisionLog`."""

    async def append(self, tx: Transaction, decision: Decision) -> None:
        """See `DecisionLog.append`."""
        row = {
            "decision_id": decision.decision_id,
            "tenant_id": decision.tenant_id,
            "question": str(decision.question),
            "allowed": decision.allowed,
            "reason": decision.reason,
            "input": decision.input,
            "policy_digest": decision.policy_digest,
            "input_digest": decision.input_digest,
            "result_digest": decision.result_digest,
            "reasons": list(decision.reasons) or None,
            "duration_us": decision.duration_us,
            "engine": decision.engine,
            "engine_decision_id": decision.engine_decision_id,
        }
        await connection_of(tx).execute(_ADD, row)


class PostgresDecisionReader:
    """Implements `DecisionReader`."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def get(self, tenant_id: TenantId, decision_id: DecisionId) -> RecordedDecision:
        """See `DecisionReader.get`."""
        query = select(decisions).where(_d.decision_id == decision_id, _d.tenant_id == tenant_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFoundError(f"there is no decision {decision_id}")
        return _decision_of(row)

    async def list(
        self,
        tenant_id: TenantId,
        *,
        question: str,
        allowed: bool | None,
        page_size: int,
        page_token: str,
    ) -> Page[RecordedDecision]:
        """See `DecisionReader.list`."""
        query = select(decisions).where(_d.tenant_id == tenant_id)
        if question:
            query = query.where(_d.question == question)
        if allowed is not None:
            query = query.where(_d.allowed.is_(allowed))
        if page_token:
            query = query.where(_d.decision_id < _decision_id_of(page_token))
        query = query.order_by(_d.decision_id.desc()).limit(page_size + 1)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        items = tuple(_decision_of(row) for row in rows[:page_size])
        more = len(rows) > page_size
        return Page(items=items, next_page_token=encode_token(items[-1].decision_id) if more else "")


class PostgresBundleStore:
    """Implements `BundleStore`."""

    async def add(self, tx: Transaction, bundle: BundleRecord) -> bool:
        """See `BundleStore.add`."""
        row = upsert(policy_bundles).values(
            digest=bundle.digest,
            version=bundle.version,
            name=bundle.name,
            comment=bundle.comment,
            key_id=bundle.key_id,
            envelope=bundle.envelope,
            files=canonical_json({path: text.decode() for path, text in bundle.files.items()}),
            published_by=bundle.published_by,
        )
        new = row.on_conflict_do_nothing(index_elements=["digest"]).returning(_b.digest)
        try:
            return (await connection_of(tx).execute(new)).first() is not None
        except IntegrityError as error:
            raise ConflictError(f"policy version {bundle.version} was published meanwhile") from error

    async def find(self, tx: Transaction, digest: Digest) -> BundleRecord | None:
        """See `BundleStore.find`."""
        return await _one(tx, select(policy_bundles).where(_b.digest == digest))

    async def find_version(self, tx: Transaction, version: int) -> BundleRecord | None:
        """See `BundleStore.find_version`."""
        return await _one(tx, select(policy_bundles).where(_b.version == version, _b.version > 0))

    async def highest_version(self, tx: Transaction) -> int:
        """See `BundleStore.highest_version`."""
        query = select(func.coalesce(func.max(_b.version), 0))
        return int((await connection_of(tx).execute(query)).scalar_one())

    async def list(self, tx: Transaction, *, page_size: int, page_token: str) -> Page[BundleRecord]:
        """See `BundleStore.list`."""
        query = select(*_SUMMARY).order_by(_b.version.desc(), _b.digest.desc()).limit(page_size + 1)
        if page_token:
            query = query.where(tuple_(_b.version, _b.digest) < _place_of(page_token))
        rows = (await connection_of(tx).execute(query)).all()
        items = tuple(_bundle_of(row, envelope=b"", files={}) for row in rows[:page_size])
        more = len(rows) > page_size
        last = f"{items[-1].version}/{items[-1].digest}" if more else ""
        return Page(items=items, next_page_token=encode_token(last) if more else "")

    async def newest_activation(self, tx: Transaction) -> Activation | None:
        """See `BundleStore.newest_activation`."""
        return await _activation(tx, select(policy_activations).order_by(_a.number.desc()).limit(1))

    async def activation(self, tx: Transaction, number: int) -> Activation | None:
        """See `BundleStore.activation`."""
        return await _activation(tx, select(policy_activations).where(_a.number == number))

    async def add_activation(self, tx: Transaction, activation: Activation) -> Activation:
        """See `BundleStore.add_activation`."""
        row = insert(policy_activations).values(
            number=activation.number,
            digest=activation.digest,
            place=activation.place,
            activated_by=activation.activated_by,
        )
        try:
            stored = (await connection_of(tx).execute(row.returning(*policy_activations.c))).mappings().one()
        except IntegrityError as error:
            raise ConflictError("another policy was put in force meanwhile") from error
        return Activation(**stored)


async def _one(tx: Transaction, query: Select[Any]) -> BundleRecord | None:
    row = (await connection_of(tx).execute(query)).first()
    if row is None:
        return None
    texts = parse_strict(row.files, max_bytes=MAX_FILES_JSON_BYTES)
    return _bundle_of(row, envelope=row.envelope, files={path: text.encode() for path, text in texts.items()})


async def _activation(tx: Transaction, query: Select[Any]) -> Activation | None:
    row = (await connection_of(tx).execute(query)).mappings().first()
    return None if row is None else Activation(**row)


def _bundle_of(row: Row[Any], *, envelope: bytes, files: dict[str, bytes]) -> BundleRecord:
    return BundleRecord(
        digest=Digest(row.digest),
        name=row.name,
        version=row.version,
        comment=row.comment,
        key_id=row.key_id,
        published_by=row.published_by,
        published_at=row.published_at,
        envelope=envelope,
        files=files,
    )


def _decision_of(row: Row[Any]) -> RecordedDecision:
    return RecordedDecision(
        decision_id=DecisionId(row.decision_id),
        tenant_id=TenantId(row.tenant_id),
        question=row.question,
        allowed=row.allowed,
        reason=row.reason,
        reasons=tuple(row.reasons or ()),
        input=row.input,
        input_digest=row.input_digest or sha256_digest(row.input),
        policy_digest=Digest(row.policy_digest),
        result_digest=row.result_digest or "",
        duration_us=row.duration_us or 0,
        engine=row.engine or "",
        engine_decision_id=row.engine_decision_id or "",
        decided_at=row.decided_at,
    )


def _decision_id_of(token: str) -> DecisionId:
    try:
        return parse_id(DECISION, decode_token(token))
    except InvalidInputError as error:
        raise InvalidInputError(BAD_TOKEN) from error


def _place_of(token: str) -> tuple[int, str]:
    version, _, digest = decode_token(token).partition("/")
    if not version.isascii() or not version.isdigit() or len(version) > len(str(2**31)):
        raise InvalidInputError(BAD_TOKEN)
    return int(version), digest
