"""What a node is and how it may change. No I/O, no clock, no randomness."""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from shared.errors import (
    EnrollmentTokenInvalidError,
    NodeEvictedError,
    NodeQuarantinedError,
    ReceiptConflictError,
    ReceiptInvalidError,
)
from shared.ids import BootId, KeyId, NodeId, TenantId

ENROLL_PROOF_DOMAIN: Final = b"agentfactory-enroll-v1"
"""What the receipt key signs in front of the certificate request when a node enrolls."""

SPOOL_HEAD_DOMAIN: Final = b"agentfactory-spool-head-v1"
"""What the receipt key signs in front of a spool head."""


class NodeState(StrEnum):
    """Whether a node's identity is good and whether it gets orders."""

    ACTIVE = "active"
    DRAINING = "draining"
    QUARANTINED = "quarantined"
    EVICTED = "evicted"

    @property
    def may_follow(self) -> tuple["NodeState", ...]:
        """The less strict states: a state is never left for one that trusts more."""
        return tuple(NodeState)[: tuple(NodeState).index(self)]


class NodeDuty(StrEnum):
    """What a node is for, from its enrollment on."""

    RUN = "run"
    COMPILE = "compile"
    """It compiles modules for others: it gets no session, no order and no body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """The engine a node runs agents with."""

    name: str
    version: str
    config_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLayer:
    """One wall around a node's sandbox workers: what it holds off, or why it is missing."""

    name: str
    active: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolHead:
    """Where a node's receipt chain stands: the newest sequence and the SHA-256 of its envelope."""

    sequence: int = 0
    hash: bytes = b""
    signature: bytes = b""

    def signed_bytes(self, node_id: NodeId, boot_id: BootId) -> bytes:
        """Return what the receipt key signs for this head (`SpoolHead.signature` in nodes.proto)."""
        return b"".join(
            (
                SPOOL_HEAD_DOMAIN,
                node_id.encode(),
                boot_id.encode(),
                self.sequence.to_bytes(8, "big"),
                self.hash,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSeen:
    """What a node has verified of the transparency log, as its newest heartbeat said; zero: nothing."""

    size: int = 0
    root: bytes = b""
    problem: str = ""
    """Why it takes no orders on account of the log."""


NOTHING_SEEN: Final = LogSeen()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSession:
    """The newest session of a node as the database knows it; `replica_id` is empty when it is closed."""

    session_epoch: int
    boot_id: BootId
    replica_id: str
    engine: EngineInfo
    slots: int
    free_slots: int
    started_at: datetime
    last_heartbeat_at: datetime
    sandbox_layers: tuple[SandboxLayer, ...] = ()
    log: LogSeen = NOTHING_SEEN

    @property
    def is_open(self) -> bool:
        return self.replica_id != ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One data-plane process with an identity of its own."""

    node_id: NodeId
    tenant_id: TenantId
    receipt_key_id: KeyId
    receipt_public_key: bytes
    """SubjectPublicKeyInfo, DER."""
    certificate_serial: str
    enrolled_at: datetime
    state: NodeState = NodeState.ACTIVE
    zone: str = ""
    duty: NodeDuty = NodeDuty.RUN
    last_accepted: SpoolHead = SpoolHead()
    last_seen_at: datetime | None = None
    session: NodeSession | None = None

    def drain(self) -> "Node":
        """Stop new orders.

        Raises:
            NodeQuarantinedError: It gets none already, for another reason.
            NodeEvictedError: It is gone.
        """
        self.require_trusted()
        return replace(self, state=NodeState.DRAINING)

    def quarantine(self) -> "Node":
        """Stop trusting its receipts. An evicted node stays evicted."""
        if self.state is NodeState.EVICTED:
            return self
        return replace(self, state=NodeState.QUARANTINED)

    def evict(self) -> "Node":
        """End its identity. There is no way back; the machine enrolls anew under another id."""
        return replace(self, state=NodeState.EVICTED)

    def require_trusted(self) -> None:
        """Let active and draining nodes pass.

        Raises:
            NodeQuarantinedError: It broke its receipt chain.
            NodeEvictedError: Its identity was ended.
        """
        if self.state is NodeState.QUARANTINED:
            raise NodeQuarantinedError(f"node {self.node_id} is quarantined")
        if self.state is NodeState.EVICTED:
            raise NodeEvictedError(f"node {self.node_id} was evicted")


class ChainState(StrEnum):
    """How a node's own account of its receipts relates to what the control plane has accepted."""

    CONTINUES = "continues"
    SPOOL_LOST = "spool_lost"


def compare_heads(*, node_id: NodeId, accepted: SpoolHead, claimed: SpoolHead) -> ChainState:
    """Compare the head a node signs for with the newest accepted one (design rule 5).

    Raises:
        ReceiptConflictError: Both heads name the same sequence with different hashes.
        ReceiptInvalidError: The claimed head has no proper hash.
    """
    if claimed.sequence > 0 and len(claimed.hash) != hashlib.sha256().digest_size:
        raise ReceiptInvalidError(f"spool head {claimed.sequence} of node {node_id} has no sha-256 hash")
    if claimed.sequence < accepted.sequence:
        return ChainState.SPOOL_LOST
    if claimed.sequence == accepted.sequence and claimed.sequence and claimed.hash != accepted.hash:
        raise ReceiptConflictError(
            f"node {node_id} has another receipt {claimed.sequence} than the accepted one"
        )
    return ChainState.CONTINUES


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentToken:
    """A right to enroll one node, or a number of them in one zone. The secret itself is never stored."""

    token_hash: str
    """SHA-256 of the secret, hexadecimal."""
    tenant_id: TenantId
    zone: str
    created_by: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    """When its last use was made."""
    node_id: NodeId | None = None
    max_uses: int = 1
    uses: int = 0
    duty: NodeDuty = NodeDuty.RUN
    """What the nodes are for that enroll with it."""

    def is_usable(self, now: datetime) -> bool:
        """Whether it may still be exchanged at `now`; not at its expiry itself."""
        return self.used_at is None and self.uses < self.max_uses and now < self.expires_at

    def zone_of(self, named: str) -> str:
        """Return the zone of a node that enrolls with it and says that it stands in `named`.

        Raises:
            EnrollmentTokenInvalidError: It is good for another zone. One of several uses is good only for
                machines that name its zone, because it lies on all of them and may be copied to others.
        """
        if named and self.zone and named != self.zone:
            raise EnrollmentTokenInvalidError(
                f"the enrollment token is for zone {self.zone}, not {named[:63]}"
            )
        if self.max_uses > 1 and named != self.zone:
            raise EnrollmentTokenInvalidError(
                "the enrollment token is for several nodes of one zone, and this one names none",
                hint="set AF_NODE_ZONE",
            )
        return self.zone or named


def hash_token(secret: str) -> str:
    """Return the stored form of a token. Its 256 random bits need no slow hash and no salt."""
    return hashlib.sha256(secret.encode()).hexdigest()
