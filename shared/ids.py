"""Typed identifiers: UUIDv7 as text with a prefix. A plain ``str`` never crosses a public function.

Ids sort by the millisecond of their making; within one they are in no order, and nothing may rely on one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, NewType, TypeVar
from uuid import UUID

from shared.clock import Clock, Random
from shared.errors import InvalidInputError

TenantId = NewType("TenantId", str)
TemplateId = NewType("TemplateId", str)
TemplateVersionId = NewType("TemplateVersionId", str)
AgentId = NewType("AgentId", str)
ExecutionId = NewType("ExecutionId", str)
AttemptId = NewType("AttemptId", str)
OrderId = NewType("OrderId", str)
OrderBatchId = NewType("OrderBatchId", str)
ReceiptId = NewType("ReceiptId", str)
BodyId = NewType("BodyId", str)
DecisionId = NewType("DecisionId", str)
AuditEntryId = NewType("AuditEntryId", str)
NodeId = NewType("NodeId", str)
BootId = NewType("BootId", str)
SessionId = NewType("SessionId", str)
EnrollmentTokenId = NewType("EnrollmentTokenId", str)
StopId = NewType("StopId", str)
CompiledArtifactId = NewType("CompiledArtifactId", str)
InstallationId = NewType("InstallationId", str)
"""Name of one installation: the trust domain of its SPIFFE ids."""

KeyId = NewType("KeyId", str)
"""``sha256:<hex>`` over the public key's SubjectPublicKeyInfo, DER. Not a UUID."""

T = TypeVar("T", bound=str)

MAX_ID_CHARS: Final = 64

UUID7_PATTERN: Final = "[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_UUID7 = re.compile(UUID7_PATTERN)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

_48_BITS: Final = (1 << 48) - 1
_VERSION_AND_VARIANT: Final = 0x7 << 76 | 0x2 << 62
_FREE_BITS: Final = ~(0xF << 76 | 0x3 << 62)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdKind(Generic[T]):
    """One kind of id: its prefix and the type that its ids have."""

    prefix: str
    type: Callable[[str], T]


TENANT: Final = IdKind(prefix="ten", type=TenantId)
TEMPLATE: Final = IdKind(prefix="tpl", type=TemplateId)
TEMPLATE_VERSION: Final = IdKind(prefix="tpv", type=TemplateVersionId)
AGENT: Final = IdKind(prefix="agt", type=AgentId)
EXECUTION: Final = IdKind(prefix="exe", type=ExecutionId)
ATTEMPT: Final = IdKind(prefix="att", type=AttemptId)
ORDER: Final = IdKind(prefix="ord", type=OrderId)
ORDER_BATCH: Final = IdKind(prefix="obt", type=OrderBatchId)
RECEIPT: Final = IdKind(prefix="rcp", type=ReceiptId)
BODY: Final = IdKind(prefix="bod", type=BodyId)
DECISION: Final = IdKind(prefix="dec", type=DecisionId)
AUDIT_ENTRY: Final = IdKind(prefix="aud", type=AuditEntryId)
NODE: Final = IdKind(prefix="nod", type=NodeId)
BOOT: Final = IdKind(prefix="boot", type=BootId)
SESSION: Final = IdKind(prefix="ses", type=SessionId)
ENROLLMENT_TOKEN: Final = IdKind(prefix="tok", type=EnrollmentTokenId)
COMPILED_ARTIFACT: Final = IdKind(prefix="cmp", type=CompiledArtifactId)
STOP: Final = IdKind(prefix="stp", type=StopId)


def new_id(kind: IdKind[T], clock: Clock, random: Random) -> T:
    """Return a fresh id such as ``exe_0190f5ac-…`` (UUIDv7, RFC 9562 section 5.7)."""
    return kind.type(f"{kind.prefix}_{_uuid7(clock.now(), random.token_bytes(10))}")


def parse_id(kind: IdKind[T], text: str) -> T:
    """Return `text` as an id of this kind.

    Raises:
        InvalidInputError: It has another prefix, or no UUIDv7 in lower-case text form behind it.
    """
    prefix, _, value = text[:MAX_ID_CHARS].partition("_")
    if len(text) > MAX_ID_CHARS or prefix != kind.prefix or not _UUID7.fullmatch(value):
        raise InvalidInputError(f"{text[:MAX_ID_CHARS]!r} is not an id of the form {kind.prefix}_<uuidv7>")
    return kind.type(text)


def id_made_at(identifier: str) -> datetime:
    """Return the millisecond in which a valid id was made."""
    return _EPOCH + (UUID(identifier.partition("_")[2]).int >> 80) * _MILLISECOND


def least_id(prefix: str, at: datetime) -> str:
    """Return a bound: ids with this prefix that were made before `at` are less, later ones are greater."""
    since = f"{(at - _EPOCH) // _MILLISECOND:012x}"
    return f"{prefix}_{since[:8]}-{since[8:]}-0000-0000-000000000000"


def _uuid7(at: datetime, random: bytes) -> str:
    # By hand: `uuid.UUID` and a division of timedeltas cost twice as much, and an execution has ten ids.
    since = at - _EPOCH
    milliseconds = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
    value = (milliseconds & _48_BITS) << 80 | int.from_bytes(random, "big")
    text = f"{value & _FREE_BITS | _VERSION_AND_VARIANT:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
