"""The order as signed bytes: its fields, their one encoding, and the Merkle batch that a signature covers.

Pure. Whether a well-signed order may run here and now (audience, time, nonce, fencing, policy) is the node's
to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from shared.canonical import MAX_SAFE_INTEGER, canonical_json, parse_canonical
from shared.digests import Digest, digest_from_raw, digest_to_raw, sha256_digest
from shared.dsse import ORDERS_TYPE, sign_envelope, verify_envelope
from shared.errors import InvalidInputError, UnsupportedVersionError, VerificationError
from shared.fields import Fields, time_to_text
from shared.ids import AgentId, BootId, DecisionId, ExecutionId, KeyId, NodeId, OrderId, TenantId
from shared.limits import LIMIT_FIELDS, MAX_LIMITS, NEEDED_LIMITS, Limits
from shared.manifest import NO_CAPABILITIES, Capabilities, Profile
from shared.merkle import MAX_BATCH_LEAVES, batch_paths, leaf_hash, verify_inclusion
from shared.signatures import PublicKey, Signer

ORDER_FORMAT: Final = "agentfactory.order.v2"
OLDER_ORDER_FORMAT: Final = "agentfactory.order.v1"
"""Without the limits and capabilities that came with host calls; spoken with nodes that know no other."""
LLM_ORDER_FORMAT: Final = "agentfactory.order.v3"
"""Of an order that grants language models, and of no other."""
ORDER_FORMATS: Final = (LLM_ORDER_FORMAT, ORDER_FORMAT, OLDER_ORDER_FORMAT)
"""Newest first."""

BATCH_FORMAT: Final = "agentfactory.orders.v1"
MAX_ORDER_BYTES: Final = 256 * 1024
MAX_BATCH_ENVELOPE_BYTES: Final = 8 * 1024
MAX_LEASE: Final = timedelta(seconds=60)
"""Of an attempt on a node that says nothing: after it another node gets the execution."""

NONCE_BYTES: Final = 16
SEED_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConstraint:
    """Which engines may run the order; None allows any."""

    name: str | None = None
    version: str | None = None
    config_digest: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The authorisation of one attempt on one node until a time. All that influences the run is here."""

    format: str = ORDER_FORMAT
    """One of `ORDER_FORMATS`: how it is written. Its receipt is of the version that goes with it."""
    id: OrderId
    installation: str
    epoch: int
    tenant_id: TenantId
    caller: str
    agent_id: AgentId
    agent_name: str
    parameters_digest: Digest
    execution_id: ExecutionId
    attempt_number: int
    fencing_token: int
    node_id: NodeId
    boot_id: BootId
    template_digest: Digest
    module_digest: Digest
    input_commitment: Digest
    input_bytes: int
    media_type: str
    profile: Profile
    seed: bytes = field(repr=False)
    clock_start_at: datetime
    engine: EngineConstraint = EngineConstraint()
    limits: Limits
    capabilities: Capabilities = NO_CAPABILITIES
    host_call_grants: tuple[str, ...] = ()
    decision_id: DecisionId
    policy_digest: Digest
    traceparent: str
    not_before: datetime
    expires_at: datetime
    nonce: bytes = field(repr=False)
    lease: timedelta
    heartbeat_number: int
    retry_is_safe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedOrderRoot:
    """A Merkle root over orders that a trusted key signed."""

    installation: str
    epoch: int
    tree_size: int
    root: Digest
    issued_at: datetime
    key_ids: frozenset[KeyId]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatch:
    """What will be signed, and the path of every order in the sequence that was given."""

    payload: bytes
    paths: tuple[tuple[bytes, ...], ...]


def plan_batch(
    orders: Sequence[bytes], *, installation: str, epoch: int, issued_at: datetime
) -> PlannedBatch:
    """Put 1 to 256 encoded orders under one root: where each stands is known before the root is signed.

    Raises:
        InvalidInputError: There are none, too many, or one is larger than 256 KiB.
    """
    if any(len(order) > MAX_ORDER_BYTES for order in orders):
        raise InvalidInputError(f"an order has more than {MAX_ORDER_BYTES} bytes")
    tree = batch_paths(orders)
    payload = canonical_json(
        {
            "type": BATCH_FORMAT,
            "installation": installation,
            "epoch": epoch,
            "tree_size": len(orders),
            "root": digest_from_raw(tree.root),
            "issued_at": time_to_text(issued_at),
        }
    )
    return PlannedBatch(payload=payload, paths=tree.paths)


async def sign_planned(batch: PlannedBatch, signer: Signer) -> bytes:
    """Return the envelope of the batch's root: one signature for all of its orders.

    Raises:
        KeyUnavailableError: The key's custodian does not answer.
    """
    return await sign_envelope(ORDERS_TYPE, batch.payload, [signer])


def verify_batch(
    envelope: bytes, *, keys: Mapping[KeyId, PublicKey], installation: str, minimum_epoch: int
) -> VerifiedOrderRoot:
    """Return the root if, and only if, every check passes.

    1. A trusted order key signed the exact bytes (`verify_envelope`).
    2. They are a canonical root statement of this format, over 1 to 256 orders.
    3. It is of this installation.
    4. Its epoch is not older than `minimum_epoch`, the highest one seen.

    Raises:
        VerificationError: A check failed; the class says which kind, the message the number.
        UnsupportedVersionError: Check 2, the format is of another version.
    """
    verified = verify_envelope(
        envelope, payload_type=ORDERS_TYPE, keys=keys, max_bytes=MAX_BATCH_ENVELOPE_BYTES
    )
    said = Fields(parse_canonical(verified.payload), "order root")
    found = said.text("type")
    if found != BATCH_FORMAT:
        raise UnsupportedVersionError(f"check 2: root format is {found[:64]!r}, expected {BATCH_FORMAT!r}")
    root = VerifiedOrderRoot(
        installation=said.text("installation", max_chars=64),
        epoch=said.integer("epoch", minimum=1),
        tree_size=said.integer("tree_size", minimum=1, maximum=MAX_BATCH_LEAVES),
        root=said.digest("root"),
        issued_at=said.time("issued_at"),
        key_ids=verified.key_ids,
    )
    said.end()
    if root.installation != installation:
        raise VerificationError(
            f"check 3: orders are of installation {root.installation!r}, expected {installation!r}"
        )
    if root.epoch < minimum_epoch:
        raise VerificationError(
            f"check 4: orders are of epoch {root.epoch}, the current one is {minimum_epoch}"
        )
    return root


def verify_order_inclusion(
    order: bytes, *, index: int, path: Sequence[bytes], verified_root: VerifiedOrderRoot
) -> Digest:
    """Return the order's digest if, and only if, its exact bytes are leaf `index` of the signed tree.

    Raises:
        ProofInvalidError: The path does not lead to the root.
    """
    verify_inclusion(
        leaf=leaf_hash(order),
        index=index,
        size=verified_root.tree_size,
        path=path,
        root=digest_to_raw(verified_root.root),
    )
    return sha256_digest(order)


def _check_format(order: Order) -> None:
    if order.format not in ORDER_FORMATS:
        raise InvalidInputError(f"order is of format {order.format[:64]!r}, which is not known")
    if (order.format == LLM_ORDER_FORMAT) != (order.capabilities.llm is not None):
        raise InvalidInputError(f"order of {order.format} does not go with the capability llm")


def check_order(order: Order) -> None:
    """Refuse an order whose fields contradict the format, at both ends.

    Raises:
        InvalidInputError: Its format is unknown, a number or a limit is out of range, a time is naive, the
            nonce does not have 16 or the seed 32 bytes, it expires before it begins, or its lease is none or
            above 60 s.
    """
    _check_format(order)
    numbers = {
        "epoch": order.epoch,
        "attempt_number": order.attempt_number,
        "fencing_token": order.fencing_token,
    }
    for name, number in numbers.items():
        if not 1 <= number <= MAX_SAFE_INTEGER:
            raise InvalidInputError(f"order field {name!r} is {number}, not 1 to 2^53 - 1")
    for name in LIMIT_FIELDS:
        value, bound = getattr(order.limits, name), getattr(MAX_LIMITS, name)
        least = 1 if name in NEEDED_LIMITS else 0
        if not least <= value <= bound:
            raise InvalidInputError(f"order limit {name!r} is {value}, not {least} to {bound}")
    if len(order.nonce) != NONCE_BYTES or len(order.seed) != SEED_BYTES:
        raise InvalidInputError(f"nonce and seed have {len(order.nonce)} and {len(order.seed)} bytes")
    if any(at.tzinfo is None for at in (order.not_before, order.expires_at, order.clock_start_at)):
        raise InvalidInputError("a time in the order is naive")
    if order.not_before >= order.expires_at:
        raise InvalidInputError(f"order expires at {order.expires_at}, not after {order.not_before}")
    if not timedelta(0) < order.lease <= MAX_LEASE:
        raise InvalidInputError(f"order has a lease of {order.lease}, not above 0 and up to {MAX_LEASE}")
